"""Orders: a recipe with its inputs, as one thing that can be tried on a few rows, estimated, and filled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from embedsmith.corpus import Query
from embedsmith.documents import Passage
from embedsmith.encoder import Encoder
from embedsmith.errors import ConfigurationError
from embedsmith.examples import Example, Rejected
from embedsmith.llm import Completion, Prompt
from embedsmith.llm.budget import Price, Usage
from embedsmith.llm.calls import Calls, measure
from embedsmith.llm.pilot import Estimate, PilotRow, choose_rows, estimate
from embedsmith.synthesis.e5 import E5Plan, synthesize_e5
from embedsmith.synthesis.e5.plan import TWO_STEPS
from embedsmith.synthesis.langcache import synthesize_langcache
from embedsmith.synthesis.rag import RagPlan, choose_passages, synthesize_rag
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
    leaks = tuple(evaluation)
    sizes = {
        query.id: sum(len(prompt.system) + len(prompt.user) for prompt in render(recipe, query)) for query in queries
    }
    return Order(
        "langcache",
        sizes,
        lambda calls: synthesize_langcache(recipe, queries, calls, evaluation=leaks),
        lambda count: order_langcache(
            recipe, [queries[place] for place in choose_rows(list(sizes.values()), count)], evaluation=leaks
        ),
    )


def order_rag(
    plan: RagPlan, passages: Sequence[Passage], *, encoder: Encoder | None = None, evaluation: Iterable[str] = ()
) -> Order:
    """Return the order of questions about passages; its pilot asks about the passages that come first in the plan.

    The search of the round trip goes through all passages in the pilot, too.
    """
    leaks = tuple(evaluation)
    return Order(
        "rag",
        {passages[place].id: len(passages[place].text) for place in choose_passages(plan, passages)},
        lambda calls: synthesize_rag(plan, passages, calls, encoder=encoder, evaluation=leaks),
        lambda count: order_rag(
            replace(plan, quota=count * plan.per_passage), passages, encoder=encoder, evaluation=leaks
        ),
        lambda name: name.partition("#")[0].partition("+")[0],
    )


def order_e5(plan: E5Plan, *, evaluation: Iterable[str] = ()) -> Order:
    """Return the order of a plan of E5; its pilot is the plan's beginning."""
    if plan.sts_as == "scored" and set(plan.groups) != {"sts"}:
        raise ConfigurationError(
            "scored STS pairs beside other groups",
            expected="files of one kind of rows",
            action="write them by --groups sts into a folder of their own",
        )
    leaks = tuple(evaluation)
    return Order(
        "e5",
        {row.id: 2 if row.group in TWO_STEPS else 1 for row in plan.rows()},
        lambda calls: synthesize_e5(plan, calls, evaluation=leaks),
        lambda count: order_e5(replace(plan, tasks=min(count, plan.tasks)), evaluation=leaks),
        lambda name: name.removesuffix("/tasks"),
    )


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


def try_order(order: Order, calls: Calls, count: int, *, price: Price | None = None, in_flight: float = 1.0) -> Pilot:
    """Return what `count` rows of an order led to; their calls are in the journal, so the whole run repeats none.

    Args:
        in_flight: calls at once in the whole run, for the time it will take.
    """
    first = order.first(count)
    heard: list[tuple[Prompt, Completion]] = []
    calls.on_answer = lambda prompt, completion: heard.append((prompt, completion))
    rows = list(first.fill(calls))
    calls.on_answer = None
    return Pilot(
        rows=len(first.sizes),
        exchanges=tuple(heard),
        kept=tuple(row for row in rows if not isinstance(row, Rejected)),
        rejected=tuple(row for row in rows if isinstance(row, Rejected)),
        estimate=_estimate(first, order, heard, price, in_flight),
    )


def _estimate(
    first: Order, order: Order, heard: Sequence[tuple[Prompt, Completion]], price: Price | None, in_flight: float
) -> Estimate | None:
    """Extrapolate from the calls of each row, step by step together."""
    used = dict.fromkeys(first.sizes, Usage())
    seconds = dict.fromkeys(first.sizes, 0.0)
    for prompt, completion in heard:
        row = first.row_of(prompt.row)
        used[row] += measure(completion) or Usage(1)
        seconds[row] += completion.seconds
    if not heard:
        return None
    rows = [PilotRow(order.sizes[row], used[row], seconds[row]) for row in used]
    return estimate(rows, list(order.sizes.values()), price=price, in_flight=in_flight)
