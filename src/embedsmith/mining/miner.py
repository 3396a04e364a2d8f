"""Mining: examples, a corpus and an encoder in; the examples with hard negatives out, and a count of all that was not.

Four steps, each of which survives a kill: texts to disk, embeddings to disk, neighbours to disk, negatives chosen.
What is in memory grows with the examples (their texts), not with the corpus: blocks, and 16 bytes a passage.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from embedsmith.encoder import Embeddings, Encoder, sides_of
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Example, LabelledPair, PositivePair, Provenance, Triplet
from embedsmith.mining.blocks import NeighbourFiles, SearchBlock, open_neighbours
from embedsmith.mining.engines import Engine, LocalEngine, Work
from embedsmith.mining.planning import SearchPlan, plan_search
from embedsmith.mining.relabelling import Relabeller, Verdict
from embedsmith.mining.search import QUERIES, score_pairs
from embedsmith.mining.selection import Candidates, Known, screen, walk
from embedsmith.mining.settings import MiningSettings
from embedsmith.mining.store import FillBlock, VectorFile, describe_vectors, open_vectors
from embedsmith.mining.texts import SpooledTexts, spool
from embedsmith.text import normalize

Row: TypeAlias = PositivePair | Triplet
Key: TypeAlias = tuple[str, str]  # the anchor's normal form, and its instruction
Progress: TypeAlias = Callable[[str, int, int], None]
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True)
class Relabelled:
    """A candidate that a relabeller judged, with its evidence; rank and similarity are the encoder's."""

    anchor: str
    text: str
    verdict: Verdict
    rank: int
    similarity: float


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What mining did.

    Attributes:
        rows: examples. anchors: distinct ones. corpus: distinct texts searched. repeats: of the corpus, merged.
        candidates: neighbours looked at, all anchors together: taken + left + the sum of `dropped`.
        dropped: number by reason (`selection.REASONS`). taken: became negatives. left: not needed.
        short: rows with fewer mined negatives than asked, `none` of them without any (kept as they were).
        further_positives: rows added since a relabeller found an answer.
        teachers_dropped: rows whose column of scores had to go, since the mined negatives have none of that teacher.
        positives, negatives: percentiles of the cosines with the anchor, by percentile.
        search: how neighbours were found, and why so.
    """

    rows: int
    anchors: int
    corpus: int
    repeats: int
    candidates: int
    dropped: Mapping[str, int]
    taken: int
    left: int
    short: int
    none: int
    further_positives: int
    teachers_dropped: int
    positives: Mapping[int, float]
    negatives: Mapping[int, float]
    search: str


@dataclass(frozen=True, slots=True)
class MiningResult:
    """The mined examples in the order of the rows, the report, and what a relabeller judged."""

    examples: tuple[Example, ...]
    report: MiningReport
    judged: tuple[Relabelled, ...] = ()


@dataclass(slots=True)
class _Anchor:
    """An anchor with all that its rows say of it; texts by normal form, so that the order of rows leaves no trace."""

    text: str
    positives: dict[str, str] = field(default_factory=dict)
    negatives: dict[str, str] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Chosen:
    """What was chosen for one anchor: places in the corpus, cosines, further positives."""

    places: tuple[int, ...]
    scores: tuple[float, ...]
    further: tuple[tuple[int, float], ...] = ()


def mine(
    examples: Sequence[Example],
    corpus: Iterable[str] | None = None,
    *,
    encoder: Encoder,
    settings: MiningSettings | None = None,
    work: Path | str | None = None,
    engine: Engine | None = None,
    relabeller: Relabeller | None = None,
    encoder_name: str = "",
    on_progress: Progress | None = None,
) -> MiningResult:
    """Return the examples with hard negatives from `corpus`; all in memory (`Miner.stream` holds one row at a time).

    Args:
        examples: `PositivePair` or `Triplet`. Rows with one anchor (and instruction) are one question with several
            positives. Negatives that a row has stay, in front of the mined ones.
        corpus: any stream of texts; None is the positives of the examples.
        work: folder for texts, embeddings and neighbours; a run that was killed goes on from it, and one with other
            rules uses them again. None is a temporary folder.
        encoder_name: what tells this encoder from others, such as `model.fingerprint_model`; without it, the vectors
            of three texts do.

    Raises:
        InputError: an example of another kind, or no text in the corpus. ModelError: no unit vectors.
    """
    with ExitStack() as stack:
        if work is None:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="embedsmith-mining-"))
        miner = Miner(
            examples,
            corpus,
            encoder=encoder,
            settings=settings,
            work=work,
            engine=engine,
            relabeller=relabeller,
            encoder_name=encoder_name,
            on_progress=on_progress,
        )
        stack.callback(miner.close)
        mined = tuple(miner.stream())
        return MiningResult(mined, miner.report, tuple(miner.judged))


class Miner:
    """The steps of `mine`, one by one.

    Attributes:
        judged: what the relabeller said, in the order of the anchors' texts; complete after `choose`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        corpus: Iterable[str] | None = None,
        *,
        encoder: Encoder,
        work: Path | str,
        settings: MiningSettings | None = None,
        engine: Engine | None = None,
        relabeller: Relabeller | None = None,
        encoder_name: str = "",
        on_progress: Progress | None = None,
        query_block: int = QUERIES,
    ) -> None:
        self.settings = settings or MiningSettings()
        self.rows = _require_rows(examples)
        self.for_queries, self.for_documents = sides_of(encoder)
        self.work = Path(work).resolve()  # workers of a cluster start elsewhere
        self.engine = engine or LocalEngine()
        self.relabeller, self.encoder_name, self.query_block = relabeller, encoder_name, query_block
        self.judged: list[Relabelled] = []
        self._progress: Progress = on_progress or (lambda _name, _done, _total: None)
        self._anchors = _collect(self.rows)
        self._keys = sorted(self._anchors)
        self._groups: dict[str, set[str]] = {}
        self._spool(corpus)
        self._plan: SearchPlan | None = None
        self._chosen: list[_Chosen] | None = None
        self._dropped: Counter[str] = Counter()
        self._candidates = 0
        self._similar: tuple[array[float], array[float]] = (array("f"), array("f"))
        self._tally = Counter[str]()
        self._known_scores: list[dict[str, float]] = []

    def _spool(self, corpus: Iterable[str] | None) -> None:
        if corpus is None:  # sorted, so that the order of rows decides no tie
            corpus = (text for _, text in sorted({p for a in self._anchors.values() for p in a.positives.items()}))
        self.corpus = spool(corpus, self.work / "corpus")
        if not len(self.corpus):
            raise InputError("the corpus has no text", expected="at least one")
        texts = [self._anchors[key].text for key in self._keys]
        self.queries = spool(texts, self.work / "anchors", merge=False)  # other instructions are other anchors
        wanted: dict[str, str] = {}
        for key in self._keys:
            anchor = self._anchors[key]
            for group in anchor.groups:
                self._groups.setdefault(group, set()).update((anchor.text, *anchor.positives.values()))
            wanted.update(anchor.positives)
            wanted.update(anchor.negatives if self.settings.scores else {})
        texts = [wanted[form] for form in sorted(wanted)]
        places = self.corpus.find(texts)
        outside = [text for text, place in zip(texts, places, strict=True) if place is None]
        self.outside = spool(outside, self.work / "outside")

    def plan(self) -> SearchPlan:
        """Return how neighbours will be found; encodes three texts to learn the dimension."""
        if self._plan is None:
            dimension = self._open(self.corpus, self.for_documents).dimension
            self._plan = plan_search(len(self._keys), len(self.corpus), dimension, self.settings)
        return self._plan

    def embed(self) -> tuple[VectorFile, VectorFile, VectorFile | None]:
        """Return the vectors of the anchors, the corpus, and the positives outside of it; what is on disk is kept."""
        sides = [(self.corpus, self.for_documents), (self.queries, self.for_queries)]
        sides += [(self.outside, self.for_documents)] if len(self.outside) else []
        files = []
        for texts, encoder in sides:
            file = self._open(texts, encoder)
            self._run(f"embedding {texts.folder.name}", FillBlock(file, texts, encoder), file.missing(), file.blocks)
            files.append(file)
        return files[1], files[0], files[2] if len(files) > 2 else None

    def _open(self, texts: SpooledTexts, encoder: Encoder) -> VectorFile:
        return open_vectors(
            self.work / f"vectors-{texts.folder.name}",
            texts,
            encoder,
            fingerprint=texts.fingerprint,
            name=self.encoder_name,
            storage=self.settings.storage,
        )

    def _run(self, name: str, work: Work, missing: Sequence[int], total: int) -> None:
        done = total - len(missing)
        self._progress(name, done, total)
        for _ in self.engine.run(work, missing):
            done += 1
            self._progress(name, done, total)

    def search(self, queries: VectorFile, corpus: VectorFile) -> NeighbourFiles:
        """Return the neighbours of each anchor to the window's last rank; blocks that are on disk are kept."""
        plan = self.plan()
        depth = self.settings.window[1]
        about = {
            "kind": plan.kind,
            "depth": depth,
            "queries": describe_vectors(queries),
            "corpus": describe_vectors(corpus),
        }
        files = open_neighbours(self.work / "neighbours", len(queries), about, block=self.query_block)
        if files.missing():
            self._run("searching", self._search_work(plan, files, queries, corpus), files.missing(), files.blocks)
        return files

    def _search_work(self, plan: SearchPlan, files: NeighbourFiles, queries: VectorFile, corpus: VectorFile) -> Work:
        depth = self.settings.window[1]
        if plan.kind == "exact":
            return SearchBlock(files, queries, corpus, depth)
        from embedsmith.mining.index import IndexBlock, build_index

        path = build_index(self.work, corpus, on_progress=lambda done, all_: self._progress("indexing", done, all_))
        return IndexBlock(files, queries, corpus, depth, path)

    def choose(self) -> None:
        """Choose the negatives of every anchor; called by `stream`."""
        queries, corpus, outside = self.embed()
        files = self.search(queries, corpus)
        self._chosen = []
        for number in range(files.blocks):
            self._choose_block(files, number, queries, corpus, outside)
            self._progress("choosing", files.range_of(number)[1], files.queries)

    def _choose_block(
        self, files: NeighbourFiles, number: int, queries: VectorFile, corpus: VectorFile, outside: VectorFile | None
    ) -> None:
        start, stop = files.range_of(number)
        anchors = [self._anchors[key] for key in self._keys[start:stop]]
        found = files.read(number)
        known = self._know(anchors, queries.read(start, stop), corpus, outside)
        pools = [
            screen(one, found.places[row], found.scores[row], self.settings, judge=self.relabeller is not None)
            for row, one in enumerate(known)
        ]
        self._candidates += int(np.count_nonzero(found.places >= 0))
        judge = self._take if self.relabeller is None else self._take_judged
        for one, pool, chosen in zip(known, pools, judge(known, pools), strict=True):
            self._dropped.update(pool.dropped)
            self._similar[0].extend(one.similarities)
            self._similar[1].extend(chosen.scores)
            assert self._chosen is not None
            self._chosen.append(chosen)

    def _take(self, known: Sequence[Known], pools: Sequence[Candidates]) -> Iterator[_Chosen]:
        for one, pool in zip(known, pools, strict=True):
            indexes = [index for index, _ in _first(walk(one, pool, self.corpus.__getitem__), self.settings.negatives)]
            yield _chosen(pool, indexes)

    def _take_judged(self, known: Sequence[Known], pools: Sequence[Candidates]) -> Iterator[_Chosen]:
        """Judge the first candidates of all anchors in one go; "no" becomes a negative, "yes" a positive."""
        assert self.relabeller is not None
        shown = [
            list(_first(walk(one, pool, self.corpus.__getitem__), self.settings.judged_at_most))
            for one, pool in zip(known, pools, strict=True)
        ]
        pairs = [(one.anchor, text) for one, texts in zip(known, shown, strict=True) for _, text in texts]
        verdicts = iter(self.relabeller.judge(pairs))
        for one, pool, texts in zip(known, pools, shown, strict=True):
            own = [(index, text, next(verdicts)) for index, text in texts]
            self.judged += [
                Relabelled(one.anchor, text, verdict, pool.ranks[index], pool.scores[index])
                for index, text, verdict in own
            ]
            pool.dropped["judged-positive"] += sum(verdict.answers == "yes" for _, _, verdict in own)
            pool.dropped["judged-unclear"] += sum(verdict.answers == "unclear" for _, _, verdict in own)
            kept = [index for index, _, verdict in own if verdict.answers == "no"][: self.settings.negatives]
            further = tuple((pool.places[i], pool.scores[i]) for i, _, verdict in own if verdict.answers == "yes")
            yield replace(_chosen(pool, kept), further=further)

    def _know(
        self, anchors: Sequence[_Anchor], vectors: Embeddings, corpus: VectorFile, outside: VectorFile | None
    ) -> list[Known]:
        """Return what is known of a block's anchors, with the cosines of their positives (and own negatives)."""
        texts = [_texts_of(anchor, scored=self.settings.scores) for anchor in anchors]
        rows = np.repeat(np.arange(len(anchors)), [len(own) for own in texts])
        flat = [text for own in texts for text in own]
        inside = self.corpus.find(flat)
        scores = np.zeros(len(flat), dtype=np.float32)
        _score_into(scores, vectors, rows, corpus, inside)
        if outside is not None:
            missing = [text if place is None else None for text, place in zip(flat, inside, strict=True)]
            there = self.outside.find([text or "" for text in missing])
            _score_into(scores, vectors, rows, outside, [p if t else None for p, t in zip(there, missing, strict=True)])
        known = []
        at = 0
        themselves = self.corpus.find([anchor.text for anchor in anchors])
        for anchor, own, itself in zip(anchors, texts, themselves, strict=True):
            scored = scores[at : at + len(own)].tolist()
            known.append(self._known(anchor, itself, inside[at : at + len(own)], scored))
            if self.settings.scores:
                self._known_scores.append(dict(zip(map(normalize, own), scored, strict=True)))
            at += len(own)
        return known

    def _known(self, anchor: _Anchor, itself: int | None, places: Sequence[int | None], scores: list[float]) -> Known:
        count = len(anchor.positives)
        group = {text for name in anchor.groups for text in self._groups[name]}
        return Known(
            anchor.text,
            tuple(anchor.positives.values()),
            tuple(scores[:count]),
            itself,
            frozenset(place for place in places[:count] if place is not None),
            frozenset(place for place in self.corpus.find(sorted(group)) if place is not None),
            frozenset(p for p in self.corpus.find(list(anchor.negatives.values())) if p is not None),
        )

    def stream(self) -> Iterator[Example]:
        """Yield the mined rows in the order of the examples; a row of further positives comes after its anchor's first.

        A row without negatives is a `PositivePair`, as it was. Rows of one anchor have the same mined negatives.
        """
        if self._chosen is None:
            self.choose()
        assert self._chosen is not None
        numbers = {key: number for number, key in enumerate(self._keys)}
        seen = bytearray(len(self._keys))
        self._tally.clear()
        for row in self.rows:
            number = numbers[_key(row)]
            chosen = self._chosen[number]
            yield from self._write(row, number, chosen)
            self._tally["short"] += len(chosen.places) < self.settings.negatives
            self._tally["none"] += not chosen.places
            if not seen[number]:
                seen[number] = 1
                yield from self._write_further(row, number, chosen)

    def _write(self, row: Row, number: int, chosen: _Chosen) -> Iterator[Example]:
        mined = tuple(self.corpus[place] for place in chosen.places)
        own = row.negatives if isinstance(row, Triplet) else ()
        if self.settings.output == "pairs":
            yield LabelledPair(row.anchor, row.positive, 1, row.group, row.provenance)
            for text in (*own, *mined):
                yield LabelledPair(row.anchor, text, 0, row.group, row.provenance)
        elif not mined:
            yield row
        else:
            self._tally["teachers"] += isinstance(row, Triplet) and bool(row.scores)
            scores = self._scores(row, number, chosen) if self.settings.scores else ()
            negatives = (*own, *mined)
            yield Triplet(
                row.anchor, row.positive, negatives, row.group, row.provenance, scores, instruction=row.instruction
            )

    def _scores(self, row: Row, number: int, chosen: _Chosen) -> tuple[float, ...]:
        known = self._known_scores[number]
        own = row.negatives if isinstance(row, Triplet) else ()
        return (*(known[normalize(text)] for text in (row.positive, *own)), *chosen.scores)

    def _write_further(self, row: Row, number: int, chosen: _Chosen) -> Iterator[Example]:
        """Yield a row for each text that the relabeller called an answer; it says who did, and by which prompt."""
        assert self.relabeller is not None or not chosen.further
        for place, score in chosen.further:
            assert self.relabeller is not None
            source = row.provenance.source if row.provenance else row.group or ""
            made = Provenance(source, self.relabeller.prompt, self.relabeller.name, checks=("relabelled",))
            text = self.corpus[place]
            if self.settings.scores:
                self._known_scores[number].setdefault(normalize(text), score)
            self._tally["further"] += 1
            added = PositivePair(row.anchor, text, row.group, made, row.instruction)
            yield from self._write(added, number, chosen)

    @property
    def report(self) -> MiningReport:
        """What was done; complete when `stream` has ended."""
        if self._chosen is None:
            raise ConfigurationError("nothing was mined yet", expected="the rows of `stream` taken first")
        taken = sum(len(chosen.places) for chosen in self._chosen)
        dropped = {reason: count for reason, count in self._dropped.most_common() if count}
        plan = self.plan()
        return MiningReport(
            rows=len(self.rows),
            anchors=len(self._keys),
            corpus=len(self.corpus),
            repeats=self.corpus.read - len(self.corpus),
            candidates=self._candidates,
            dropped=dropped,
            taken=taken,
            left=self._candidates - taken - sum(dropped.values()),
            short=self._tally["short"],
            none=self._tally["none"],
            further_positives=self._tally["further"],
            teachers_dropped=self._tally["teachers"],
            positives=_percentiles(self._similar[0]),
            negatives=_percentiles(self._similar[1]),
            search=f"{plan.kind}: {plan.reason}",
        )

    def close(self) -> None:
        """Give files back."""
        for texts in (self.corpus, self.queries, self.outside):
            texts.close()


def _require_rows(examples: Sequence[Example]) -> list[Row]:
    rows = [example for example in examples if isinstance(example, (PositivePair, Triplet))]
    if len(rows) < len(examples) or not rows:
        other = next((type(e).__name__ for e in examples if not isinstance(e, (PositivePair, Triplet))), "no")
        raise InputError(
            f"{len(examples) - len(rows) or 'there'} {other} rows" if rows else f"{other} rows to mine for",
            expected="rows with anchor and positive (and negatives, if there are any)",
        )
    return rows


def _key(row: Row) -> Key:
    return normalize(row.anchor), row.instruction or ""


def _collect(rows: Sequence[Row]) -> dict[Key, _Anchor]:
    """Return the distinct anchors; of texts with one normal form, the smallest stands for all."""
    anchors: dict[Key, _Anchor] = {}
    for row in rows:
        anchor = anchors.setdefault(_key(row), _Anchor(row.anchor))
        anchor.text = min(anchor.text, row.anchor)
        _add(anchor.positives, row.positive)
        for text in row.negatives if isinstance(row, Triplet) else ():
            _add(anchor.negatives, text)
        if row.group is not None:
            anchor.groups.add(row.group)
    for anchor in anchors.values():
        anchor.positives = dict(sorted(anchor.positives.items()))
        anchor.negatives = dict(sorted(anchor.negatives.items()))
    return anchors


def _add(texts: dict[str, str], text: str) -> None:
    form = normalize(text)
    texts[form] = min(texts.get(form, text), text)


def _texts_of(anchor: _Anchor, *, scored: bool) -> list[str]:
    negatives = {form: text for form, text in anchor.negatives.items() if scored and form not in anchor.positives}
    return [*anchor.positives.values(), *negatives.values()]


def _score_into(
    scores: Embeddings, vectors: Embeddings, rows: np.ndarray, file: VectorFile, places: Sequence[int | None]
) -> None:
    here = np.array([index for index, place in enumerate(places) if place is not None], dtype=np.int64)
    if len(here):
        found = np.array([place for place in places if place is not None], dtype=np.int64)
        scores[here] = score_pairs(vectors, rows[here], file, found)


def _first(items: Iterator[tuple[int, str]], count: int) -> Iterator[tuple[int, str]]:
    """Yield the first `count`; unlike islice, never asks for one more, which would count a reason."""
    for _ in range(count):
        item = next(items, None)
        if item is None:
            return
        yield item


def _chosen(pool: Candidates, indexes: Sequence[int]) -> _Chosen:
    return _Chosen(tuple(pool.places[i] for i in indexes), tuple(pool.scores[i] for i in indexes))


def _percentiles(values: array[float]) -> dict[int, float]:
    if not len(values):
        return {}
    found = np.percentile(np.frombuffer(values, dtype=np.float32), PERCENTILES)
    return {percentile: round(float(value), 4) for percentile, value in zip(PERCENTILES, found, strict=True)}
