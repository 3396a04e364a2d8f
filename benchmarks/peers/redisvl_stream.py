"""redisvl's SemanticCache on a stream, on the Redis whose URL is in REDIS_URL; its own distance threshold is .1."""

import os
import sys

from redisvl.extensions.cache.llm import SemanticCache
from redisvl.utils.vectorize import CustomTextVectorizer
from replay import replay

NUMBER = iter(range(10**9))


def open_cache(by_text, cosine, limit):  # type: ignore[no-untyped-def]  # noqa: ARG001 (it has no limit)
    blank = [0.0] * len(next(iter(by_text.values())))
    vectorizer = CustomTextVectorizer(embed=lambda text, **_: by_text[text].tolist() if text in by_text else blank)
    settings = {} if cosine is None else {"distance_threshold": 1 - cosine}
    name = f"stream-{os.getpid()}-{next(NUMBER)}"
    cache = SemanticCache(name=name, redis_url=os.environ["REDIS_URL"], vectorizer=vectorizer, **settings)

    def look_up(text):  # type: ignore[no-untyped-def]
        found = cache.check(prompt=text)
        return found[0]["response"] if found else None

    return look_up, lambda text, answer: cache.store(text, answer)


if __name__ == "__main__":
    replay(sys.argv, open_cache)
