"""embedsmith's SQLite store, without embedding: the search of the semantic tier with the fetch of its entries and the
decision, and a whole `SemanticCache.lookup` (keys, exact tier, search, decision, note of the use), whose encoder only
hands out the vectors given.
"""

import sys
import tempfile

from worker import load, measure, percentiles, write

from embedsmith.cache.decision import Policy, decide, partition_of
from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores import Entry


class Given:
    """Vectors that are known before they are asked for."""

    fingerprint = "bench"

    def __init__(self, vectors, queries) -> None:  # type: ignore[no-untyped-def]
        self._known = {"dimension": vectors[:1]}
        self._known |= {f"asked {place}": queries[place : place + 1] for place in range(len(queries))}

    def encode(self, texts, /):  # type: ignore[no-untyped-def]
        (text,) = texts
        return self._known[text]


def main() -> None:
    vectors, queries = load(sys.argv)
    policy, partition = Policy(threshold=0.8), partition_of("a", {})
    cache = SemanticCache(Given(vectors, queries), store=f"sqlite:///{tempfile.mkdtemp()}/cache.db", policy=policy)
    store = cache.store
    for start in range(0, len(vectors), 1000):
        rows = range(start, min(start + 1000, len(vectors)))
        store.put(
            [
                Entry(f"{row:032x}", "a", partition, f"question {row}", "answer " * 20, vectors[row], float(row))
                for row in rows
            ]
        )

    def search(query):  # type: ignore[no-untyped-def]
        return decide("question", store.search(partition, query, policy.candidates, 0.0, floor=policy.floor), policy)

    def look_up(text):  # type: ignore[no-untyped-def]
        found = cache.lookup(text, namespace="a")
        assert found.decision.nearest is not None, "nothing found"
        return found

    searches = measure(search, queries)
    lookups = measure(look_up, [f"asked {place}" for place in range(len(queries))])
    write({**percentiles(searches), **{f"lookup_{name}": value for name, value in percentiles(lookups).items()}})


if __name__ == "__main__":
    main()
