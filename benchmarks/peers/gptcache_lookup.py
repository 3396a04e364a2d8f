"""GPTCache's lookup without embedding: its SQLite store with a FAISS index, as its documentation sets it up."""

import os
import sys
import tempfile

from gptcache.manager import CacheBase, VectorBase, get_data_manager
from worker import load, measure, percentiles, write


def main() -> None:
    vectors, queries = load(sys.argv)
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    manager = get_data_manager(CacheBase("sqlite"), VectorBase("faiss", dimension=vectors.shape[1]))
    texts = [f"question {row}" for row in range(len(vectors))]
    for start in range(0, len(vectors), 1000):
        part = slice(start, start + 1000)
        manager.import_data(
            texts[part], ["answer " * 20] * len(texts[part]), list(vectors[part]), [None] * len(texts[part])
        )

    def look_up(query):  # type: ignore[no-untyped-def]
        found = manager.search(query, top_k=1)
        return manager.get_scalar_data(found[0])

    write(percentiles(measure(look_up, queries)))


if __name__ == "__main__":
    main()
