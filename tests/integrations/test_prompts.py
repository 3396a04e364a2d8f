"""The two prompts of a model: where they come from, with torch and exported, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedsmith.errors import ConfigurationError
from embedsmith.integrations.prompts import open_prompted
from embedsmith.model import fingerprint_model
from embedsmith.runtime import FOLDER, REPORT
from embedsmith.testing import FakeEncoder

QUERY, TEXTS = "how do I freeze my card", ["one apple", "the red car"]
FIND, BOTH = {"query": "find: "}, {"query": "find: ", "document": "text: "}


def save(model: Path, folder: Path, prompts: dict[str, str], default: str | None) -> Path:
    network = SentenceTransformer(str(model))
    network.prompts, network.default_prompt_name = prompts, default
    network.save(str(folder))
    return folder


@pytest.mark.parametrize(
    ("prompts", "default"), [({}, None), (FIND, None), (BOTH, None), (FIND, "query"), (BOTH, "query")]
)
def test_vectors_are_those_of_encode_query_and_encode_document(
    tiny_model: Path, tmp_path: Path, prompts: dict[str, str], default: str | None
) -> None:
    folder = save(tiny_model, tmp_path / "model", prompts, default)
    ours, peer = open_prompted(folder), SentenceTransformer(str(folder))
    np.testing.assert_allclose(ours.encode_queries([QUERY])[0], peer.encode_query(QUERY), atol=1e-5)
    np.testing.assert_allclose(ours.encode_texts(TEXTS), peer.encode_document(TEXTS), atol=1e-5)


def test_prompts_of_ones_own() -> None:
    encoder = FakeEncoder(64)
    ours = open_prompted(encoder, query_prompt="find: ")
    np.testing.assert_array_equal(ours.encode_queries([QUERY]), encoder.encode([f"find: {QUERY}"]))
    np.testing.assert_array_equal(ours.encode_texts(TEXTS), encoder.encode(TEXTS))


def test_an_exported_model_has_the_same_prompts_or_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from embedsmith.export import export_model

    folder = save(tiny_model, tmp_path / "model", BOTH, None)
    with_torch = open_prompted(folder)
    export_model(folder, precision="fp32", texts=[QUERY, *TEXTS])
    exported = open_prompted(folder)
    assert type(exported.encoder) is not type(with_torch.encoder)
    np.testing.assert_allclose(exported.encode_queries([QUERY]), with_torch.encode_queries([QUERY]), atol=1e-4)
    np.testing.assert_allclose(exported.encode_texts(TEXTS), with_torch.encode_texts(TEXTS), atol=1e-4)

    other = tmp_path / "default"  # as it would be exported with a prompt before every text
    shutil.copytree(folder, other)
    rewrite(other / "config_sentence_transformers.json", default_prompt_name="query")
    rewrite(other / FOLDER / REPORT, fingerprint=fingerprint_model(other), prompt="find: ")
    with pytest.raises(ConfigurationError, match="before every text"):
        open_prompted(other)


def test_a_model_that_pools_without_its_prompt_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = save(tiny_model, tmp_path / "model", BOTH, None)
    (config,) = folder.glob("*_Pooling/config.json")
    rewrite(config, include_prompt=False)
    with pytest.raises(ConfigurationError, match="out of the pooling"):
        open_prompted(folder)
    assert open_prompted(folder, query_prompt="", text_prompt="").query_prompt == ""


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
