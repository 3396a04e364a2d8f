"""GPTCache on a stream, set up by its own `init_similar_cache`: SQLite, FAISS, SearchDistanceEvaluation.

All is its default (similarity threshold .8, which with unit vectors is cosine .6) but two things: the vectors,
because its ONNX model is a download and the comparison is about the cache, and the limit of 1,000 entries,
lifted unless the run names one.
"""

import sys
import tempfile

from gptcache import Cache, Config
from gptcache.adapter.api import get, init_similar_cache, put
from gptcache.manager import manager_factory
from replay import replay


class Vectors:
    """The embedding object that it asks for, with vectors made beforehand."""

    def __init__(self, by_text) -> None:  # type: ignore[no-untyped-def]
        self.by_text, self.dimension = by_text, len(next(iter(by_text.values())))

    def to_embeddings(self, data, **_):  # type: ignore[no-untyped-def]
        return self.by_text[data]


def open_cache(by_text, cosine, limit):  # type: ignore[no-untyped-def]
    embedding = Vectors(by_text)
    manager = manager_factory(
        "sqlite,faiss",
        data_dir=tempfile.mkdtemp(dir=sys.argv[2]),
        vector_params={"dimension": embedding.dimension},
        eviction_params={"max_size": limit or 10_000_000},
    )
    # Its score is 4 − squared distance = 2 + 2·cosine, and the threshold a share of 4.
    config = Config() if cosine is None else Config(similarity_threshold=(1 + cosine) / 2)
    cache = Cache()
    init_similar_cache(cache_obj=cache, embedding=embedding, data_manager=manager, config=config)
    return lambda text: get(text, cache_obj=cache), lambda text, answer: put(text, answer, cache_obj=cache)


if __name__ == "__main__":
    replay(sys.argv, open_cache)
