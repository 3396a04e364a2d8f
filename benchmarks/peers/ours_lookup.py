"""embedsmith's SQLite store: the search of the semantic tier with the fetch of its entries, without embedding."""

import sys
import tempfile

from worker import load, measure

from embedsmith.cache.decision import Policy, decide
from embedsmith.cache.stores import Entry, open_store


def main() -> None:
    vectors, queries = load(sys.argv)
    store = open_store(f"sqlite:///{tempfile.mkdtemp()}/cache.db", dimension=vectors.shape[1], model="bench")
    for start in range(0, len(vectors), 1000):
        rows = range(start, min(start + 1000, len(vectors)))
        store.put(
            [
                Entry(f"{row:032x}", "a", "p", f"question {row}", "answer " * 20, vectors[row], float(row))
                for row in rows
            ]
        )
    policy = Policy(threshold=0.8)
    measure(lambda query: decide("question", store.search("p", query, policy.candidates, 0.0), policy), queries)


if __name__ == "__main__":
    main()
