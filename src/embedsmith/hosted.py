"""Hosted embeddings: any OpenAI-compatible `/v1/embeddings` endpoint as an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedsmith.encoder import Embeddings, normalize
from embedsmith.errors import LanguageModelError

BATCH = 256  # texts a request; OpenAI allows 2048, small servers less


class HostedEncoder:
    """Embeddings that a server computes; each distinct text is sent once per call.

    Args:
        model: the name the server knows it by.
        base_url: default is OpenAI's own, or the environment's OPENAI_BASE_URL.
        api_key: default is the environment's OPENAI_API_KEY; local servers need none.

    Attributes:
        base_url: where texts are sent.
        dimension: of the vectors; None before the first have come.
    """

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None) -> None:
        import os

        from openai import OpenAI

        self.name = f"openai:{model}"
        self.model = model
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = OpenAI(base_url=base_url, api_key=key, max_retries=5)
        self.base_url = str(self._client.base_url)
        self.dimension: int | None = None

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, d) float32 in the order of `texts`.

        Raises:
            LanguageModelError: the endpoint cannot be reached or refuses.
        """
        distinct = list(dict.fromkeys(texts))
        blocks = [self._request(distinct[start : start + BATCH]) for start in range(0, len(distinct), BATCH)]
        if not blocks:
            return np.zeros((0, 0), dtype=np.float32)
        place = {text: row for row, text in enumerate(distinct)}
        return normalize(np.concatenate(blocks)[[place[text] for text in texts]])

    def _request(self, texts: list[str]) -> Embeddings:
        from openai import APIError

        try:
            answer = self._client.embeddings.create(model=self.model, input=texts, encoding_format="float")
        except APIError as error:
            raise LanguageModelError(
                f"the embeddings endpoint at {self._client.base_url} failed: {error.message}",
                expected=f"embeddings of model {self.model}",
                action="check the base URL, the model's name and OPENAI_API_KEY",
            ) from error
        rows = sorted(answer.data, key=lambda row: row.index)
        if len(rows) != len(texts):
            raise LanguageModelError(
                f"the embeddings endpoint at {self._client.base_url} answered {len(texts)} texts with {len(rows)} rows",
                expected="one embedding a text",
                action="check that the model is one for embeddings",
            )
        vectors = np.array([row.embedding for row in rows], dtype=np.float32)
        self.dimension = int(vectors.shape[1])
        return vectors
