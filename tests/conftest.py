"""Shared by all tests: where the data is, and the small real model that the demo trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that does other things as well is no fault of a strategy, and no test here is about time.
settings.register_profile("embedsmith", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("embedsmith")


@pytest.fixture(scope="session", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the 150 that each HTTP client reads when it is made, for 30 ms of the processor: nothing here speaks TLS."""
    import certifi  # a part of httpx

    path = tmp_path_factory.mktemp("trusted") / "one.pem"
    end = "-----END CERTIFICATE-----\n"
    path.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared development data; tests that need it are skipped, visibly, where it is missing."""
    folder = Path(os.environ.get("EMBEDSMITH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder} (set EMBEDSMITH_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights and the demo model's tokenizer, as a folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    from embedsmith.model import DEMO_MODEL, load_network, resolve_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "bert")
    load_network(resolve_model(DEMO_MODEL)).tokenizer.save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"), max_seq_length=32)
    SentenceTransformer(modules=[body, Pooling(32, pooling_mode="mean"), Normalize()]).save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def lean_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its ONNX export: a process that serves it needs no torch, whose import takes seconds."""
    pytest.importorskip("onnxscript")
    from embedsmith.export import export_model

    folder = tmp_path_factory.mktemp("lean") / "model"
    export_model(tiny_model, folder)
    return folder
