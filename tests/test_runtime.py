"""An exported model gives the vectors of sentence-transformers, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, Qwen2Config, Qwen2Model

import embedsmith.runtime as runtime
from embedsmith.encoder import TOO_LONG, UNKNOWN, find_unread
from embedsmith.errors import ConfigurationError, EmbedsmithError, ModelError
from embedsmith.examples import LabelledPair
from embedsmith.export import export_model, require, trace
from embedsmith.model import DEMO_MODEL, fingerprint_model, load_encoder, load_network, resolve_model
from embedsmith.quantization import find_towering, quantize_columns, share_sizes
from embedsmith.runtime import Fidelity, OnnxEncoder
from embedsmith.testing import FakeEncoder

TEXTS = [
    "how do I reset my password",
    "",
    "   ",
    "a",
    "word " * 400,
    "Wie setze ich mein Paſswort zurück? 😀 ✨",
    "パスワードを忘れました",
    "line one\nline two\ttab \x00 zero",
    "İstanbul ﬁne ① ½",
    "[SEP] [CLS] [MASK] literal",
    *(f"question number {number} " + "about a long thing " * number for number in range(9)),
]
PAIRS = [LabelledPair("one apple", "an apple", 1), LabelledPair("one apple", "the red car", 0)]


SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def build(folder: Path, pooling: str, body: Any, **settings: Any) -> Path:
    """A model with random weights, large enough that every layer counts, and the demo model's tokenizer."""
    body.save_pretrained(folder / "body")
    load_network(DEMO_MODEL).tokenizer.save_pretrained(folder / "body")
    modules = [Transformer(str(folder / "body"), max_seq_length=48), Pooling(64, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, **settings).save(str(folder / "model"))
    return folder / "model"


def make_bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=30522, initializer_range=0.2, **SHAPE))


def make_qwen() -> Qwen2Model:
    torch.manual_seed(0)
    return Qwen2Model(Qwen2Config(vocab_size=30522, initializer_range=0.2, num_key_value_heads=2, **SHAPE))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mean-pooled BERT, exported in both precisions."""
    folder = build(tmp_path_factory.mktemp("exported"), "mean", make_bert())
    export_model(folder, precision="fp32", texts=TEXTS, pairs=PAIRS)
    export_model(folder, precision="int8", texts=TEXTS, pairs=PAIRS, max_loss=1)
    return folder


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLS-pooled BERT with a default prompt, copied and exported in fp32 only."""
    prompt = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    folder = build(tmp_path_factory.mktemp("prompted"), "cls", make_bert(), **prompt)
    export_model(folder, folder.parent / "out", texts=TEXTS, pairs=PAIRS)
    return folder.parent / "out"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """The exported model, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def reference(folder: Path, texts: list[str] = TEXTS) -> Any:
    return SentenceTransformer(str(folder)).encode(texts, normalize_embeddings=True, show_progress_bar=False)


def test_mean_pooling_gives_the_vectors_of_sentence_transformers(exported: Path) -> None:
    encoder = OnnxEncoder(exported, precision="fp32")
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 64)
    assert np.abs(vectors - reference(exported)).max() < 1e-5
    assert (encoder.dimension, encoder.max_length) == (64, 48)
    assert encoder.fingerprint == fingerprint_model(exported)


def test_cls_pooling_and_a_default_prompt_do_too(prompted: Path) -> None:
    encoder = OnnxEncoder(prompted)
    assert encoder.report.prompt == "query: "
    assert np.abs(encoder.encode(TEXTS) - reference(prompted)).max() < 1e-5


def test_a_causal_model_with_last_token_pooling_does_too(tmp_path: Path) -> None:
    folder = build(tmp_path, "lasttoken", make_qwen())
    report = export_model(folder, texts=TEXTS, pairs=PAIRS)
    assert report.precisions["fp32"].lowest_cosine > 1 - 1e-5
    assert np.abs(OnnxEncoder(folder).encode(TEXTS) - reference(folder)).max() < 1e-5


def test_any_batch_and_length_gives_the_same_rows_in_order(exported: Path) -> None:
    encoder = OnnxEncoder(exported, precision="fp32")
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    backwards = encoder.encode(TEXTS[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - backwards).max() < 1e-5
    assert encoder.encode([]).shape == (0, 64)


def test_int8_gives_a_text_the_same_vector_in_any_company(exported: Path) -> None:
    encoder = OnnxEncoder(exported, precision="int8", threads=2)
    together = encoder.encode(TEXTS)
    assert np.array_equal(together, np.concatenate([encoder.encode([text]) for text in TEXTS]))
    assert np.array_equal(together[::-1], encoder.encode(TEXTS[::-1]))


def test_a_stale_export_is_refused(copy: Path) -> None:
    settings = copy / "config.json"
    settings.write_text(settings.read_text() + "\n")
    with pytest.raises(ModelError, match="the export is stale") as caught:
        OnnxEncoder(copy)
    assert f"embedsmith export {copy}" in caught.value.action


def test_exporting_does_not_change_the_fingerprint(exported: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(exported, tmp_path / "bare", ignore=shutil.ignore_patterns("onnx"))
    assert fingerprint_model(bare) == fingerprint_model(exported)


def test_a_missing_export_says_what_to_run(copy: Path) -> None:
    (copy / "onnx" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be loaded"):
        OnnxEncoder(copy, precision="fp32")
    shutil.rmtree(copy / "onnx")
    with pytest.raises(ModelError, match="has no ONNX export") as caught:
        OnnxEncoder(copy)
    assert caught.value.action == f"embedsmith export {copy}"


def test_a_precision_that_was_not_exported_says_what_to_run(prompted: Path) -> None:
    with pytest.raises(ModelError, match="not exported in int8") as caught:
        OnnxEncoder(prompted, precision="int8")
    assert caught.value.action.endswith("--precision int8")
    assert OnnxEncoder(prompted).precision == "fp32"


def test_a_copy_is_exported_and_the_source_stays_as_it_was(prompted: Path) -> None:
    assert not (prompted.parent / "model" / "onnx").exists()
    assert fingerprint_model(prompted) == fingerprint_model(prompted.parent / "model")


def test_int8_is_close_and_smaller_and_preferred(exported: Path) -> None:
    report = json.loads((exported / "onnx" / "report.json").read_text())["precisions"]
    assert report["int8"]["mean_cosine"] > 0.99
    assert report["int8"]["size"] == (exported / "onnx" / "model_int8.onnx").stat().st_size < report["fp32"]["size"]
    encoder = OnnxEncoder(exported)
    assert encoder.precision == "int8"
    cosines = (encoder.encode(TEXTS) * reference(exported)).sum(axis=1)
    assert 0.99 < cosines.mean() < 1 - 1e-6, "it is another graph, and close"


def test_int8_beyond_the_bound_leaves_what_was_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedsmith.export.trace", lambda _: onnx.load(copy / "onnx" / "model.onnx"))  # as it was
    before = {file.name: file.read_bytes() for file in (copy / "onnx").iterdir()}
    with pytest.raises(ConfigurationError, match=r"int8 is too far from fp32: mean cosine 0\.99\d\d"):
        export_model(copy, precision="int8", texts=TEXTS, pairs=PAIRS, least_cosine=0.99999999)
    assert {file.name: file.read_bytes() for file in (copy / "onnx").iterdir()} == before
    assert not list(copy.glob(".onnx*"))


@pytest.mark.parametrize(
    ("precision", "cosine", "loss", "refused"),
    [
        ("fp32", 1 - 1e-6, 0.0, False),
        ("fp32", 1 - 1e-4, 0.0, True),
        ("fp32", float("nan"), 0.0, True),
        ("int8", 0.991, 0.004, False),
        ("int8", 0.991, None, False),
        ("int8", 0.989, 0.0, True),
        ("int8", 0.999, 0.006, True),
    ],
)
def test_what_is_close_enough(precision: Any, cosine: float, loss: float | None, refused: bool) -> None:
    fidelity = Fidelity("model.onnx", 1, cosine, cosine, 10, loss, 10)
    try:
        require(fidelity, precision, least_cosine=0.99, max_loss=0.005)
    except EmbedsmithError:
        assert refused
    else:
        assert not refused


def test_an_installed_model_is_not_written_into() -> None:
    with pytest.raises(ConfigurationError, match="not a folder of yours"):
        export_model(DEMO_MODEL)
    assert not (Path(resolve_model(DEMO_MODEL)) / "onnx").exists()


def test_a_model_that_torch_cannot_follow_is_named(exported: Path) -> None:
    network = load_network(exported)

    class Moody(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            vectors = features["sentence_embedding"]
            return features if float(vectors.sum()) > 0 else features | {"sentence_embedding": -vectors}

    network.append(Moody())
    with pytest.raises(ModelError, match=r"torch\.onnx cannot export BertModel"):
        trace(network)


def test_serving_loads_no_torch(exported: Path) -> None:
    code = (
        "import sys; from embedsmith.runtime import OnnxEncoder; "
        f"print(OnnxEncoder({str(exported)!r}).encode(['one', 'two']).shape); "
        "print([name for name in ('torch', 'transformers', 'sentence_transformers', 'onnx') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["(2, 64)", "[]"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_many_threads_may_ask_at_once(exported: Path, precision: Any) -> None:
    encoder = OnnxEncoder(exported, precision=precision, threads=1)
    alone = [encoder.encode([text]) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda place: encoder.encode([TEXTS[place]]), list(range(len(TEXTS))) * 10))
    assert all(np.array_equal(answer, alone[place % len(TEXTS)]) for place, answer in enumerate(answers))


def test_automatic_choices_are_explained(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 16)
    encoder = OnnxEncoder(exported)
    assert encoder.threads == runtime.MOST_THREADS
    assert [reason.split(":")[0] for reason in encoder.explained] == ["precision int8", f"threads {encoder.threads}"]
    assert OnnxEncoder(exported, precision="fp32", threads=1).explained == ()
    with pytest.raises(ConfigurationError, match="threads is 0"):
        OnnxEncoder(exported, threads=0)


def test_sharing_sizes_changes_no_product() -> None:
    generator = np.random.default_rng(0)
    values, weight = generator.normal(size=(5, 40)), generator.normal(size=(40, 7)).astype(np.float32)
    values[:, 3] *= 100
    peaks = np.abs(values).max(axis=0).astype(np.float32)
    factor = share_sizes(peaks, weight)
    assert np.allclose((values / factor) @ (weight * factor[:, None]), values @ weight, atol=1e-4)
    assert np.ptp(peaks / factor) < np.ptp(peaks) / 5
    assert share_sizes(np.zeros(40, np.float32), weight).tolist() == [1] * 40


def test_weights_in_8_bits_are_off_by_at_most_half_a_step() -> None:
    weight = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    weight[:, 2] = 0
    integers, scales = quantize_columns(weight)
    assert integers.dtype == np.int8
    assert (np.abs(integers * scales - weight) <= scales / 2 + 1e-7).all()


def test_only_towering_channels_stand_apart() -> None:
    sizes = np.ones(64, np.float32)
    assert find_towering(sizes).tolist() == []
    sizes[[5, 40]] = 50
    assert {5, 40} <= set(find_towering(sizes).tolist())
    assert find_towering(sizes[:20]).tolist() == []


def test_both_encoders_know_what_they_read_to_the_end(exported: Path) -> None:
    torch_encoder, onnx_encoder = load_encoder(exported), OnnxEncoder(exported)
    for words in (1, 44, 45, 46, 47, 60):  # 48 tokens are read, two of them stand around the text
        text = "word " * words
        expected = "" if words <= 46 else TOO_LONG
        assert find_unread(torch_encoder, text) == find_unread(onnx_encoder, text) == expected, words
    assert find_unread(FakeEncoder(), "word " * 1000) == ""


@pytest.mark.parametrize(
    "text", ["怎么开通账户", "does 🍆 mean", "ክፍት", "z" * 101, f"what does {'ab' * 51} mean, " * 3]
)
def test_both_encoders_know_what_their_tokenizer_does_not(exported: Path, text: str) -> None:
    for encoder in (load_encoder(exported), OnnxEncoder(exported)):
        assert find_unread(encoder, text) == UNKNOWN


@pytest.mark.parametrize("text", ["naïve café", "Grüße, señor", "5 × 3 – é", "", " ", "\n\t", "z" * 40])
def test_what_is_not_ascii_is_read_where_the_tokenizer_knows_it(exported: Path, text: str) -> None:
    for encoder in (load_encoder(exported), OnnxEncoder(exported)):
        assert find_unread(encoder, text) == ""


@pytest.mark.parametrize("letters", [10, 50_000])
def test_long_texts_are_read_as_short_ones_are(exported: Path, letters: int) -> None:
    """They are read without the GIL; a beginning without any token must not decide."""
    encoder = OnnxEncoder(exported)
    assert find_unread(encoder, " " * letters + "one word") == ""
    assert find_unread(encoder, "ab " * letters + "🍆") == (UNKNOWN if letters == 10 else TOO_LONG)
    text = " " * letters + "one word"
    np.testing.assert_array_equal(encoder.encode([text]), encoder.encode(["one word"]))
