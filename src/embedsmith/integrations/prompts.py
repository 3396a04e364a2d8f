"""A model with its two prompts: one for what is searched, one for what is searched for.

sentence-transformers keeps them in the model's folder under the names "query" and "document" (or "passage",
"corpus"); its `encode_query` and `encode_document` put them before the texts, and so do we.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedsmith.artifacts import read_json
from embedsmith.cache.settings import open_encoder
from embedsmith.encoder import Embeddings, Encoder
from embedsmith.errors import ConfigurationError
from embedsmith.model import TorchEncoder, resolve_model
from embedsmith.networks import pools_prompts

TEXT_NAMES = ("document", "passage", "corpus")  # in the order in which sentence-transformers takes them


@dataclass(frozen=True, slots=True)
class PromptedEncoder:
    """An encoder with a prompt for queries and one for texts; "" puts nothing before them."""

    encoder: Encoder
    query_prompt: str = ""
    text_prompt: str = ""

    def encode_queries(self, texts: Sequence[str]) -> Embeddings:
        """Return unit rows (n, d) float32 of what is searched for."""
        return self.encoder.encode([self.query_prompt + text for text in texts])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Return unit rows (n, d) float32 of what is searched."""
        return self.encoder.encode([self.text_prompt + text for text in texts])


def open_prompted(
    model: Encoder | Path | str, *, query_prompt: str | None = None, text_prompt: str | None = None
) -> PromptedEncoder:
    """Return the encoder with its prompts; a model folder with an ONNX export runs without torch.

    Args:
        model: a sentence-transformers folder or hub id, or anything with `encode` (which has no prompts).
        query_prompt, text_prompt: instead of the folder's.

    Raises:
        ConfigurationError: the export puts one prompt before every text and another is wanted, or the model keeps
            prompts out of its pooling.
    """
    if not isinstance(model, (str, Path)):
        return PromptedEncoder(model, query_prompt or "", text_prompt or "")
    encoder, _ = open_encoder(model, None)
    prompts, default, pooled = _read_prompts(resolve_model(model), encoder)
    query = query_prompt if query_prompt is not None else prompts.get("query", default)
    named = next((prompts[name] for name in TEXT_NAMES if name in prompts), default)
    text = text_prompt if text_prompt is not None else named
    if default and {query, text} == {default}:
        query = text = ""  # the encoder itself puts it there
    elif default:
        if not isinstance(encoder, TorchEncoder):
            raise ConfigurationError(
                f"the export of {model} puts {default!r} before every text, but queries want {query!r}, texts {text!r}",
                expected="a folder without default_prompt_name, or with no other prompts",
                action="take default_prompt_name out of its config_sentence_transformers.json and export it again",
            )
        encoder = TorchEncoder(encoder.network, name=encoder.name, precision=encoder.precision, prompt="")
    if (query or text) and not pooled:
        raise ConfigurationError(
            f"{model} keeps its prompts out of the pooling (include_prompt is false), which is not supported",
            action="pass query_prompt='' and text_prompt=''",
        )
    return PromptedEncoder(encoder, query, text)


def _read_prompts(path: str, encoder: Encoder) -> tuple[Mapping[str, str], str, bool]:
    """Return (the prompts by name, the one before every text, whether prompts take part in the pooling)."""
    if isinstance(encoder, TorchEncoder):
        network = encoder.network
        prompts, name = network.prompts, network.default_prompt_name
        pooled = pools_prompts(network)
    else:
        file = Path(path) / "config_sentence_transformers.json"
        settings = read_json(file) if file.is_file() else {}
        prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
        poolings = [read_json(at) for at in Path(path).glob("*_Pooling/config.json")]
        pooled = all(pooling.get("include_prompt", True) for pooling in poolings)
    return prompts, prompts.get(name, "") if name else "", pooled
