"""redisvl's SemanticCache.check with a given vector, on the Redis whose URL is in REDIS_URL."""

import os
import sys

from redisvl.extensions.cache.llm import SemanticCache
from redisvl.utils.vectorize import CustomTextVectorizer
from worker import load, measure, percentiles, write


def main() -> None:
    vectors, queries = load(sys.argv)
    vectorizer = CustomTextVectorizer(embed=lambda *_, **__: [0.0] * vectors.shape[1])
    cache = SemanticCache(
        name="bench", redis_url=os.environ["REDIS_URL"], vectorizer=vectorizer, distance_threshold=0.2, overwrite=True
    )
    for row, vector in enumerate(vectors):
        cache.store(f"question {row}", "answer " * 20, vector=vector.tolist())
    as_lists = [query.tolist() for query in queries]
    write(percentiles(measure(lambda query: cache.check(vector=query, num_results=1), as_lists)))


if __name__ == "__main__":
    main()
