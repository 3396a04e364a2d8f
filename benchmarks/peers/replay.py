"""What the peers share when they replay a stream: the job, the loop, the result. Needs only numpy.

The job is a .npz of `texts`, `vectors`, `stored` (how many are in the cache beforehand) and a JSON list of
runs [name, cosine or null for the peer's own threshold, limit or null]. A miss is stored, a hit is not. Prints
one line of JSON: for each run, by request, the place of the request whose answer was served; −1 is a miss, −2
a request stored beforehand.
"""

import json
import sys

import numpy as np


def replay(arguments, open_cache) -> None:  # type: ignore[no-untyped-def]
    """Run the job in the arguments; `open_cache(vectors by text, cosine, limit)` gives (look_up, store)."""
    held = np.load(arguments[1])
    texts, stored = json.loads(str(held["texts"])), int(held["stored"])
    by_text = dict(zip(texts, held["vectors"], strict=True))
    results = {}
    for name, cosine, limit in json.loads(str(held["runs"])):
        look_up, store = open_cache(by_text, cosine, limit)
        served = []
        for place, text in enumerate(texts):
            answer = look_up(text) if place >= stored else None
            served.append(-2 if place < stored else -1 if answer is None else int(answer))
            if answer is None:
                store(text, str(place))
        results[name] = served
    json.dump(results, sys.stdout)
    print()
