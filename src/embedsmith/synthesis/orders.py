"""Orders: a recipe with its inputs, as one thing that can be tried on a few rows, estimated, and filled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from embedsmith.corpus import Query, require_own_ids
from embedsmith.documents import Passage
from embedsmith.encoder import Encoder
from embedsmith.errors import ConfigurationError
from embedsmith.examples import Example, Rejected
from embedsmith.llm import Completion, Prompt
from embedsmith.llm.budget import Price, Usage
from embedsmith.llm.calls import AdaptiveModel, Calls, StreamingModel, measure
from embedsmith.llm.pacing import Pace, Timed, measure_pace, recall_pace
from embedsmith.llm.pilot import Estimate, PilotRow, choose_rows, estimate
from embedsmith.synthesis.e5 import E5Plan, synthesize_e5
from embedsmith.synthesis.e5.plan import TWO_STEPS
from embedsmith.synthesis.filters import is_too_long
from embedsmith.synthesis.langcache import synthesize_langcache
from embedsmith.synthesis.rag import RagPlan, render_targets, synthesize_rag
from embedsmith.synthesis.recipes import Recipe, render


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written.

    Attributes:
        sizes: by row (a query, a passage, a row of a plan): the characters of its prompts, or the number of its calls
            where nobody knows its prompts before the first step is done.
        fill: the recipe's stream of examples and rejections.
        first: the order of a few rows that stand for all, and their sizes.
        row_of: the row that a prompt's name belongs to.
    """

    recipe: str
    sizes: Mapping[str, int]
    fill: Callable[[Calls], Iterator[Example | Rejected]]
    first: Callable[[int], Order]
    row_of: Callable[[str], str] = field(default=lambda name: name)


def order_langcache(recipe: Recipe, queries: Sequence[Query], *, evaluation: Iterable[str] = ()) -> Order:
    """Return the order of paraphrases and near misses of `queries`; its pilot takes queries of all lengths."""
    require_own_ids(queries)
    leaks = tuple(evaluation)
    asked = [query for query in queries if not is_too_long(query.text)]
    sizes = {
        query.id: sum(len(prompt.system) + len(prompt.user) for prompt in render(recipe, query)) for query in asked
    }
    return Order(
        "langcache",
        sizes,
        lambda calls: synthesize_langcache(recipe, queries, calls, evaluation=leaks),
        lambda count: order_langcache(
            recipe, [asked[place] for place in choose_rows(list(sizes.values()), count)], evaluation=leaks
        ),
        lambda name: name if name in sizes else name.rpartition("#")[0],
    )


def order_rag(
    plan: RagPlan, passages: Sequence[Passage], *, encoder: Encoder | None = None, evaluation: Iterable[str] = ()
) -> Order:
    """Return the order of questions about passages; its pilot asks about the passages that come first in the plan.

    The search of the round trip goes through all passages in the pilot, too.
    """
    leaks = tuple(evaluation)
    sizes: dict[str, int] = {}
    rows: dict[str, str] = {}  # by the first passage's name, which a judge's call has
    for own, prompt in render_targets(plan, passages):
        sizes[prompt.row] = len(prompt.system) + len(prompt.user)
        rows.setdefault(own[0].id, prompt.row)
    return Order(
        "rag",
        sizes,
        lambda calls: synthesize_rag(plan, passages, calls, encoder=encoder, evaluation=leaks),
        lambda count: order_rag(
            replace(plan, quota=count * plan.per_passage), passages, encoder=encoder, evaluation=leaks
        ),
        lambda name: name if name in sizes else rows[name.rpartition("#")[0]],
    )


def order_e5(plan: E5Plan, *, evaluation: Iterable[str] = ()) -> Order:
    """Return the order of a plan of E5; its pilot is the plan's beginning."""
    if plan.sts_as == "scored" and set(plan.groups) != {"sts"}:
        raise ConfigurationError(
            "scored STS pairs beside other groups",
            expected="files of one kind of rows",
            action="write the group sts alone, into a folder of its own",
        )
    leaks = tuple(evaluation)
    return Order(
        "e5",
        {row.id: 2 if row.group in TWO_STEPS and row.number % plan.used == 0 else 1 for row in plan.rows()},
        lambda calls: synthesize_e5(plan, calls, evaluation=leaks),
        lambda count: order_e5(replace(plan, tasks=min(count, plan.tasks)), evaluation=leaks),
        lambda name: _row_of_brainstorm(name, plan.used),
    )


def _row_of_brainstorm(name: str, used: int) -> str:
    """Return the first of the rows that a call is for."""
    if not name.endswith("/tasks"):
        return name
    group, number = name.removesuffix("/tasks").rsplit("/", 1)
    return f"{group}/{int(number) * used}"


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a few rows led to, and what all of them will take.

    Attributes:
        estimate: None when there were no calls to learn from.
    """

    rows: int
    exchanges: tuple[tuple[Prompt, Completion], ...]
    kept: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    estimate: Estimate | None


def try_order(order: Order, calls: Calls, count: int, *, price: Price | None = None, in_flight: int = 1) -> Pilot:
    """Return what `count` rows of an order led to; their calls are in the journal, so the whole run repeats none.

    Args:
        in_flight: most calls at once in the whole run, for the time it will take.
    """
    first, heard = order.first(count), _Heard(calls)
    tried = calls.budget.spent.calls
    calls.on_answer, calls.on_arrival = heard.answer, heard.arrive
    rows = list(first.fill(calls))
    calls.on_answer = calls.on_arrival = None
    heard.attempts = calls.budget.spent.calls - tried
    if not isinstance(calls.llm, StreamingModel):
        heard.alone, in_flight = True, 1
    return Pilot(
        rows=len(first.sizes),
        exchanges=tuple((prompt, completion) for _, prompt, completion in heard.exchanges),
        kept=tuple(row for row in rows if not isinstance(row, Rejected)),
        rejected=tuple(row for row in rows if isinstance(row, Rejected)),
        estimate=_estimate(first, order, heard, price, in_flight) if heard.exchanges else None,
    )


@dataclass(slots=True)
class _Heard:
    """The calls of a pilot, by step.

    Attributes:
        alone: the model makes one call after the other, or says of each call what share of the time was its own.
    """

    calls: Calls
    exchanges: list[tuple[int, Prompt, Completion]] = field(default_factory=list)
    arrived: dict[int, list[Timed]] = field(default_factory=dict)
    attempts: int = 0
    alone: bool = False

    def arrive(self, ended: float, completion: Completion) -> None:
        if completion.text is not None:
            timed = Timed(ended, completion.seconds, completion.completion_tokens)
            self.arrived.setdefault(self.calls.step, []).append(timed)

    def answer(self, prompt: Prompt, completion: Completion) -> None:
        self.exchanges.append((self.calls.step, prompt, completion))

    @property
    def steps(self) -> list[int]:
        return sorted({step for step, _, _ in self.exchanges})

    def pace(self, step: int) -> Pace:
        seen = self.arrived.get(step, [])
        if seen and not self.alone:
            return measure_pace(seen)
        known = [completion.seconds for own, _, completion in self.exchanges if own == step and completion.text]
        return recall_pace(known or [0.0])


def _estimate(first: Order, order: Order, heard: _Heard, price: Price | None, in_flight: int) -> Estimate:
    """Extrapolate from the calls of each row."""
    llm = heard.calls.llm
    steps = {step: place for place, step in enumerate(heard.steps)}
    used = dict.fromkeys(first.sizes, Usage())
    counts = {row: [0] * len(steps) for row in first.sizes}
    for step, prompt, completion in heard.exchanges:
        row = first.row_of(prompt.row)
        used[row] += measure(completion) or Usage(1)
        counts[row][steps[step]] += 1
    return estimate(
        [PilotRow(order.sizes[row], used[row], tuple(counts[row])) for row in used],
        list(order.sizes.values()),
        price=price,
        paces=[heard.pace(step) for step in steps],
        in_flight=in_flight,
        refused_at=llm.refused_at if isinstance(llm, AdaptiveModel) else None,
        attempts=heard.attempts,
        answers=sum(map(len, heard.arrived.values())),
    )
