"""Conversations in the cache: repeats served and wrong answers, with earlier turns left out, equal, or by meaning.

    .venv/bin/python benchmarks/cache_turns.py

Trained and calibrated on conversations that are composed of public questions (duplicate_questions, banking77,
medical_pairs) and of follow-ups written for this project (follow_ups.toml); a fifth of the follow-ups, and all
validation files, only calibrate. Judged on benchmarks/traps/turns.jsonl, of which nothing is trained or calibrated on
(checked): the cache holds the conversations of a half; each one's paraphrase is asked, and its trap, which differs in
an earlier turn or in the last message. Right is a paraphrase that is served its own conversation's answer; wrong is a
trap that is served at all, or a paraphrase that gets another's. The guard is on. Thresholds come from the validation
conversations alone (of the last message alone: from single questions), at the lowest rate of wrong answers that they
carry; beside it stands what each system does at the threshold that serves half of the validation repeats, without a
promise. Writes benchmarks/results/cache_turns.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from scipy.stats import binomtest

from common import ROOT, data_folder, describe_machine, read_rows, write_result
from embedsmith.artifacts import plain
from embedsmith.cache.decision import Policy
from embedsmith.cache.rules import choose_rules, served_similarities
from embedsmith.cache.semantic import SemanticCache
from embedsmith.calibration import Calibration
from embedsmith.config import TrainingConfig
from embedsmith.conversation import Turn, parse_messages, read_turns, render
from embedsmith.encoder import Encoder, Remembering, pair_similarities
from embedsmith.errors import CalibrationRefused
from embedsmith.evaluation import labels_of
from embedsmith.examples import LabelledPair, Triplet, texts_of
from embedsmith.model import DEMO_MODEL, load_encoder
from embedsmith.text import normalize
from embedsmith.training import train

ROWS = 6000  # to train on
CONFIG = TrainingConfig(batch=32)
VALIDATION = 1000  # pairs
SINGLES = 0.2  # share of single questions among the rows trained on
AN_INTENT = 5  # pairs of requests of one intent; they are alike, if no duplicates
LONGEST = 100  # characters of a composed message
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question with another wording, and a question that is near it and asks something else."""

    text: str
    same: str
    other: str


class Composer:
    """Makes conversations of questions and follow-ups, by one random source."""

    def __init__(self, groups: Mapping[str, Sequence[str]], texts: Mapping[str, Any], random_: random.Random) -> None:
        self.groups, self.random = groups, random_
        self.replies: list[str] = texts["assistants"]["any"]
        self.facts: list[list[list[str]]] = list(texts["facts"].values())

    def compose(self, first: Asked) -> tuple[str, str, list[str], list[str]]:
        """Return a conversation, the same in other words, and conversations that ask something else.

        These twice: word for word as the first one but for what changes it (to train on), and worded like the second
        one, as another user would (to calibrate on: two users seldom say anything in the same words).
        """
        pick = self.random
        names = pick.sample(sorted(self.groups), 3)
        (one_middle, two_middle), (one_last, two_last) = (pick.sample(list(self.groups[name]), 2) for name in names[:2])
        other_last, other_middle = (pick.choice(list(self.groups[name])) for name in (names[2], names[1]))
        one, two = [first.text, self.reply()], [first.same, self.reply()]
        fact = pick.choice(self.facts) if pick.random() < 0.2 else None
        if fact is not None:
            one[1], two[1] = fact[0]
        if pick.random() < 0.25:  # five turns
            one += [one_middle, self.reply()]
            two += [two_middle, self.reply()]
        others = []
        for told, first_text, last in ((one, first.text, one_last), (two, first.same, two_last)):
            found = [[first.other, *told[1:], last], [*told, other_last]]
            found += [[first_text, fact[1][0], *told[2:], last]] if fact is not None else []
            found += [[*told[:2], other_middle, *told[3:], last]] if len(told) > 2 else []
            others.append([speak(messages) for messages in found])
        like_one, like_two = others
        return speak([*one, one_last]), speak([*two, two_last]), like_one, like_two

    def reply(self) -> str:
        return self.random.choice(self.replies)


def speak(messages: Sequence[str]) -> str:
    return render([Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(messages)])


def read_asked(banned: set[str]) -> list[Asked]:
    """Return the questions to train on, each with a near miss; some customers' requests of banking among them."""
    near: dict[str, list[str]] = defaultdict(list)
    rows = read_rows(data_folder() / "duplicate_questions/train.jsonl.gz")
    for row in rows:
        if not row["label"]:
            near[row["a"]].append(row["b"])
            near[row["b"]].append(row["a"])
    draw = random.Random(0)
    pairs = [(row["a"], row["b"]) for row in rows if row["label"]]
    found = [Asked(a, b, draw.choice(near.get(a) or near[b])) for a, b in pairs if near.get(a) or near.get(b)]
    intents: dict[str, list[str]] = defaultdict(list)
    for row in read_rows(data_folder() / "banking77/train.jsonl.gz"):
        intents[row["label"]].append(row["text"])
    for name, said in sorted(intents.items()):
        draw.shuffle(said)
        other = intents[draw.choice([label for label in sorted(intents) if label != name])]
        few = said[: 2 * AN_INTENT]
        found += [Asked(a, b, draw.choice(other)) for a, b in zip(few[::2], few[1::2], strict=False)]
    fine = [item for item in found if all(fits(text, banned) for text in (item.text, item.same, item.other))]
    draw.shuffle(fine)
    return fine


def read_singles(banned: set[str]) -> list[LabelledPair]:
    """Return labelled pairs of single questions: those that a cache of them is calibrated on."""
    files = (data_folder() / f"{name}/validation.jsonl.gz" for name in ("medical_pairs", "duplicate_questions"))
    rows = [row for file in files for row in read_rows(file)]
    fine = [row for row in rows if fits(row["a"], banned) and fits(row["b"], banned)]
    return [LabelledPair(row["a"], row["b"], row["label"]) for row in fine[:VALIDATION]]


def fits(text: str, banned: set[str]) -> bool:
    return len(text) <= LONGEST and normalize(text) not in banned


def make_training(asked: Sequence[Asked], composer: Composer, rows: int) -> Iterator[Triplet]:
    for item in islice(cycle(asked), rows):
        if composer.random.random() < SINGLES:
            yield Triplet(item.text, item.same, (item.other,))
        else:
            anchor, positive, negatives, _ = composer.compose(item)
            yield Triplet(anchor, positive, tuple(composer.random.sample(negatives, 1)))


def make_validation(singles: Sequence[LabelledPair], composer: Composer) -> Iterator[LabelledPair]:
    """Yield a pair of conversations for each pair of questions, two thirds of the duplicates as such."""
    for place, pair in enumerate(singles):
        item = Asked(pair.sentence1, pair.sentence2, pair.sentence2)
        stored, same, _, others = composer.compose(item)
        if not pair.label:
            yield LabelledPair(others[0], stored, 0)
        elif place % 3:
            yield LabelledPair(same, stored, 1)
        else:
            yield LabelledPair(composer.random.choice(others[1:]), stored, 0)


def read_traps() -> list[Row]:
    lines = (ROOT / "benchmarks" / "traps" / "turns.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def promise(encoder: Encoder, pairs: Sequence[LabelledPair]) -> tuple[Calibration | None, list[str]]:
    """Return the calibration at 5% or else at the lowest rate that the pairs carry, None for none, and the refusals."""
    delta: float | None = 0.05
    refused: list[str] = []
    while delta:
        try:
            return choose_rules(encoder, pairs, delta=delta).calibration, refused
        except CalibrationRefused as refusal:
            refused.append(f"{delta:g}: {refusal.found.partition(' (')[0]}")  # what follows quotes a row
            carried = refusal.facts["delta_carried"]
            assert carried is None or isinstance(carried, float)
            delta = carried
    return None, refused


def judge(encoder: Encoder, rows: Sequence[Row], threshold: float, how: str) -> Row:
    """Return what a cache serves: the paraphrases and the traps of these conversations."""
    conversations = threshold if how == "meaning" else None
    policy = Policy(threshold, conversations=conversations)
    found: dict[str, list[str]] = {}
    with_all = SemanticCache(encoder, policy=policy, fingerprint="benchmark")
    for row in rows:
        with_all.add(pick(row["conversation"], how), row["id"])
    for row in rows:
        own = SemanticCache(encoder, policy=policy, fingerprint="benchmark")
        own.add(pick(row["conversation"], how), row["id"])
        found.setdefault("paraphrase", []).append(str(with_all.lookup(pick(row["paraphrase"], how)).answer))
        found.setdefault("trap", []).append(str(own.lookup(pick(row["trap"], how)).answer))
    told: Row = {}
    for kind in ("all", "earlier", "last"):
        places = [at for at, row in enumerate(rows) if kind in ("all", row["kind"])]
        right = sum(found["paraphrase"][at] == rows[at]["id"] for at in places)
        mixed = sum(found["paraphrase"][at] not in ("None", rows[at]["id"]) for at in places)
        trapped = sum(found["trap"][at] != "None" for at in places)
        told[kind] = {
            "conversations": len(places),
            "paraphrases_served": share(right, len(places)),
            "paraphrases_served_another": mixed,
            "traps_served": share(trapped, len(places)),
        }
    return told


def pick(messages: list[Row], how: str) -> Any:
    return messages[-1]["content"] if how == "last" else messages


def share(count: int, total: int) -> Row:
    low, high = binomtest(count, total).proportion_ci(0.95, method="exact")
    return {"count": count, "value": round(count / total, 3), "low": round(low, 3), "high": round(high, 3)}


def order(encoder: Encoder, rows: Sequence[Row]) -> float:
    """Return the share of the conversations to which the paraphrase is closer than the trap, without any threshold."""
    texts = [[render(parse_messages(row[part])) for row in rows] for part in ("conversation", "paraphrase", "trap")]
    near, far = (pair_similarities(encoder, texts[0], other) for other in texts[1:])
    return round(float((near > far).mean()), 3)


@dataclass(frozen=True)
class Data:
    """What is trained, calibrated and judged on."""

    training: list[Triplet]
    singles: list[LabelledPair]
    pairs: list[LabelledPair]
    traps: list[Row]


def read_data(rows: int) -> Data:
    texts = tomllib.loads((ROOT / "benchmarks" / "follow_ups.toml").read_text(encoding="utf-8"))
    traps = read_traps()
    banned = {normalize(message["content"]) for row in traps for part in PARTS for message in row[part]}
    names = sorted(texts["users"])
    held = set(random.Random(0).sample(names, len(names) // 5))
    taught = Composer({name: texts["users"][name] for name in names if name not in held}, texts, random.Random(1))
    kept = Composer({name: texts["users"][name] for name in held}, texts, random.Random(2))
    singles = read_singles(banned)
    found = Data(
        list(make_training(read_asked(banned), taught, rows)), singles, list(make_validation(singles, kept)), traps
    )
    require_apart(found.training, found.pairs, banned)
    return found


def measure_untuned(data: Data) -> Row:
    base = Remembering(load_encoder(DEMO_MODEL))
    return {
        "last message only, untuned": measure(base, data.singles, data.traps, "last"),
        "earlier turns equal, untuned": measure(base, data.singles, data.traps, "fingerprint"),
        "by meaning, untuned": measure(base, data.pairs, data.traps, "meaning"),
    }


def measure_tuned(data: Data) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        made = train(data.training, base=DEMO_MODEL, out=Path(folder) / "model", config=CONFIG)
        print(f"trained in {made.seconds:.0f} s, {made.tokens_per_second:.0f} tokens/s", flush=True)
        told = measure(Remembering(load_encoder(made.model)), data.pairs, data.traps, "meaning")
        return {"by meaning, tuned": {"rows": len(data.training), "training_seconds": made.seconds, **told}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Conversations")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to train on")
    data = read_data(parser.parse_args().rows)
    counts = {"pairs": len(data.pairs), "conversations": len(data.traps)}
    write_result(
        "cache_turns", {"machine": describe_machine(), **counts, "systems": measure_untuned(data) | measure_tuned(data)}
    )


PARTS = ("conversation", "paraphrase", "trap")


def require_apart(training: Sequence[Triplet], pairs: Sequence[LabelledPair], banned: set[str]) -> None:
    """Stop where a message of the traps stands in what is trained or calibrated on."""
    examples: list[Triplet | LabelledPair] = [*training, *pairs]
    for example in examples:
        for text in texts_of(example):
            for turn in read_turns(text):
                assert normalize(turn.content) not in banned, turn.content


def measure(encoder: Encoder, pairs: Sequence[LabelledPair], traps: Sequence[Row], how: str) -> Row:
    """Return what a system serves, by half of the traps.

    At the threshold with a promise, if any; and at the one that serves half of the validation repeats, which promises
    nothing and says what the system could do.
    """
    found, refused = promise(encoder, pairs)
    half_of_all = choose_half(encoder, pairs)
    told: Row = {"refused": refused, "calibration": None, "half": serve_halves(encoder, traps, half_of_all, how)}
    if how == "meaning":
        told["order"] = {half: order(encoder, rows) for half, rows in cut(traps).items()}
    if found is not None:
        told["calibration"] = {key: value for key, value in plain(found).items() if key != "probabilities"}
        told["served"] = serve_halves(encoder, traps, found.threshold, how)
    for name in ("served", "half"):
        for half in ("dev", "final") if name in told else ():
            every = told[name][half]["all"]
            right, wrong = every["paraphrases_served"], every["traps_served"]
            print(
                f"{how:12} {name:6} {half:5} paraphrases {right['value']:.1%}, traps {wrong['value']:.1%}", flush=True
            )
    return told


def choose_half(encoder: Encoder, pairs: Sequence[LabelledPair]) -> float:
    """Return the threshold that serves half of the duplicates that the guard lets pass."""
    similarities = served_similarities(encoder, pairs)[labels_of(pairs) == 1]
    return float(np.median(similarities[similarities > -1]))


def serve_halves(encoder: Encoder, traps: Sequence[Row], threshold: float, how: str) -> Row:
    served = {half: judge(encoder, rows, threshold, how) for half, rows in cut(traps).items()}
    return {"threshold": round(threshold, 4), **served}


def cut(traps: Sequence[Row]) -> dict[str, list[Row]]:
    return {half: [row for row in traps if row["half"] == half] for half in ("dev", "final")}


if __name__ == "__main__":
    main()
