"""E5's data as a stream: two steps of calls, then a verdict on every planned row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from embedsmith.artifacts import Spool
from embedsmith.examples import Example, Provenance, Rejected
from embedsmith.llm import Completion
from embedsmith.llm.calls import Calls
from embedsmith.synthesis.e5.answers import make_examples, read_answer
from embedsmith.synthesis.e5.filters import Case, Check, build_checks, name_checks
from embedsmith.synthesis.e5.plan import TWO_STEPS, E5Plan, count_calls
from embedsmith.synthesis.e5.prompting import Asker, Request, load_templates
from embedsmith.synthesis.e5.tasks import TaskChooser, Tasks, pair_tasks
from embedsmith.synthesis.e5.topics import load_topics
from embedsmith.synthesis.languages import open_identifier

SHOWN = 500  # characters of an answer that are kept with its rejection


def open_asker(plan: E5Plan) -> Asker:
    """Return what renders the prompts of a plan.

    Raises:
        ConfigurationError, InputError: the prompts file or the file of topics cannot be used, or has too few topics.
    """
    asker = Asker(plan, load_templates(plan.prompts), load_topics(plan.topics))
    last = {row.group: row for row in plan.brainstorms()} | {
        row.group: row for row in plan.rows() if row.group in {"sts", "bitext"}
    }
    for row in last.values():  # the last call is the one that could find the topics used up: better now than later
        asker.topics.start(plan.seed, row.group, row.number)
    return asker


def synthesize_e5(plan: E5Plan, calls: Calls, *, evaluation: Iterable[str] = ()) -> Iterator[Example | Rejected]:
    """Yield what becomes of every planned row: its example, or why there is none.

    `source` of a rejection (and of an example's provenance) is the row's id, "GROUP/NUMBER", for planned rows, each
    of which ends exactly once. Ideas of brainstorms that were not taken come before and have "GROUP/NUMBER/tasks". The
    order of rows is that of the plan whatever order answers come in, and a larger plan begins with the smaller one's.
    In memory is what the filters know of earlier rows: 0.8 kB a row at most, and 70 MB of tables.

    Args:
        evaluation: texts that must not appear among the examples.

    Raises:
        ConfigurationError, InputError: the plan's files cannot be used.
        MissingPartError: languages are checked and py3langid is not installed.
        LanguageModelError: the LLM cannot be reached; finished calls stay in the journal.
    """
    asker = open_asker(plan)
    identifier = open_identifier() if plan.check_languages else None
    checks = build_checks(asker.templates, identifier, evaluation, plan.tasks)
    yield from asker.topics.rejected
    with ExitStack() as stack:
        tasks: Tasks = {group: stack.enter_context(Spool(_read_task)) for group in TWO_STEPS}
        yield from _find_tasks(asker, calls, tasks)
        yield from _write_rows(asker, calls, tasks, checks)


def _read_task(task: str | None) -> str | None:
    return task


def _find_tasks(asker: Asker, calls: Calls, tasks: Tasks) -> Iterator[Rejected]:
    """Make the calls of the first step and keep a task for each row of the two-step groups."""
    plan, chooser = asker.plan, TaskChooser(asker.plan, asker.templates)
    answered = calls.complete(lambda: map(asker.brainstorm, plan.brainstorms()), total=count_calls(plan).first)
    for call, (_, completion) in zip(plan.brainstorms(), answered, strict=True):
        chosen, rejected = chooser.choose(call, completion)
        yield from rejected
        for task in chosen:
            tasks[call.group].add(task)


def _write_rows(asker: Asker, calls: Calls, tasks: Tasks, checks: tuple[Check, ...]) -> Iterator[Example | Rejected]:
    def requests() -> Iterator[Request]:
        for row, task in pair_tasks(asker.plan.rows(), tasks):
            if task is not None:
                yield asker.example(row, task)

    answered = calls.complete(lambda: (request.prompt for request in requests()))
    judge = Judge(asker.plan, calls, checks)
    for row, task in pair_tasks(asker.plan.rows(), tasks):
        if task is None:
            about = {"step": "brainstorm", "group": row.group}
            yield Rejected("no-task", "its brainstorm has no task left", source=row.id, context=about)
        else:
            _, completion = next(answered)
            yield from judge(asker.example(row, task), completion)


class Judge:
    """Turns the answer to a row's call into its examples, or into the reason why there is none."""

    def __init__(self, plan: E5Plan, calls: Calls, checks: tuple[Check, ...]) -> None:
        self._plan, self._sampling, self._checks = plan, calls.sampling, checks
        self._names = name_checks(checks)

    def __call__(self, request: Request, completion: Completion) -> tuple[Example | Rejected, ...]:
        """Return the examples of the row, or one rejection."""
        answer = read_answer(request.row.group, completion)
        if answer.reason:
            return (self._reject(request, answer.reason, answer.detail, completion),)
        case = Case(request, answer.texts)
        for check in self._checks:
            verdict = check(case)
            if verdict is not None:
                return (self._reject(request, *verdict, completion),)
        origin = Provenance(
            request.row.id, request.prompt.fingerprint, completion.model, self._sampling.seed, self._names
        )
        return make_examples(request, answer.texts, origin, self._plan.sts_as)

    def _reject(self, request: Request, reason: str, detail: str, completion: Completion) -> Rejected:
        about = {"group": request.row.group, "task": request.instruction, "language": request.anchored.code}
        if request.answered is not request.anchored:
            about["language"] += f" to {request.answered.code}"
        return Rejected(reason, detail, (completion.text or "")[:SHOWN], source=request.row.id, context=about)
