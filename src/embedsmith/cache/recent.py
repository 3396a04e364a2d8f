"""The vectors of the questions asked last: what is asked again in other words is read once."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from embedsmith.encoder import Embeddings, Encoder

KEPT = 2048  # questions; with 384 dimensions about 4 MB
SHORT = 2000  # characters of a question that is kept


class Recent:
    """An encoder's vectors of the last questions of all tenants, for many threads.

    A tenant's questions are its own: how soon an answer comes tells nobody what others asked.
    """

    def __init__(self, encoder: Encoder, kept: int = KEPT) -> None:
        self._encoder = encoder
        self._kept = kept
        self._vectors: OrderedDict[tuple[str, str], Embeddings] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, namespace: str, text: str) -> Embeddings:
        """Return the vector (d,) of a tenant's question. One that no store takes is computed each time."""
        key = namespace, text
        with self._lock:
            if (known := self._vectors.get(key)) is not None:
                self._vectors.move_to_end(key)
                return known
        vector: Embeddings = np.array(self._encoder.encode([text])[0], dtype=np.float32)
        if len(text) <= SHORT and vector.ndim == 1 and abs(vector.dot(vector) - 1) < 1e-2:  # so none that is not finite
            vector.flags.writeable = False  # it is handed to many
            with self._lock:
                self._vectors[key] = vector
                if len(self._vectors) > self._kept:
                    self._vectors.popitem(last=False)
        return vector

    def forget(self) -> None:
        """Forget all questions."""
        with self._lock:
            self._vectors.clear()
