"""The mixture and the settings: what cannot do what it says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from embedsmith.batches import Plan, Row, Source, find_crowds
from embedsmith.checks.findings import Finding, Outcome
from embedsmith.config import TrainingConfig
from embedsmith.objectives import READERS
from embedsmith.preparation import Preparation


def check_mixture(sources: Sequence[Source], counts: Sequence[int], config: TrainingConfig) -> Iterator[Outcome]:
    """Yield sources that a mixture's weights repeat hundreds of times.

    Args:
        counts: rows of each source.
    """
    total, rows = sum(source.weight for source in sources), sum(counts)
    if not total or len(sources) < 2:
        return
    seen = rows * config.epochs if not config.steps else min(rows * config.epochs, config.steps * config.batch)
    for source, count in zip(sources, counts, strict=True):
        passes = seen * source.weight / total / max(count, 1)
        if passes > max(100, 3 * config.epochs):
            yield Finding(
                "repeated-source",
                "warning",
                found=f"{source.name}: its {count} rows make up {source.weight / total:.0%} of the mixture, so each "
                f"comes "
                f"{passes:,.0f} times",
                expected="at most some dozens of times: more is learnt by heart",
                action="lower its weight, or give it more rows",
                place="configuration",
            )


def check_crowds(rows: Sequence[Row], plan: Plan, names: Sequence[str]) -> Iterator[Outcome]:
    """Yield sources with a group, or a row repeated so often, that batches are less than half of what was planned.

    Args:
        rows: of the training set. names: of the sources.
    """
    for crowd in find_crowds(rows, plan):
        what, action = _ROW if crowd.source in plan.free else _GROUP
        yield Finding(
            "crowded-group",
            "warning",
            found=f"{names[crowd.source]}: batches of about {crowd.size:.0f} rows instead of {crowd.planned}: one "
            f"{what} "
            f"comes {crowd.most:,} times among the {crowd.rows:,} rows of an epoch, and no batch takes it twice",
            expected=f"each {what} at most {max(crowd.rows // crowd.planned, 1):,} times",
            action=action,
            place="configuration",
        )


_ROW = "row", "lower the weight of the source, or --batch"
_GROUP = "group", "give rows with different answers different groups, leave some of the group out, or lower --batch"


def check_effects(
    config: TrainingConfig, preparation: Preparation, given: Sequence[Source], sources: Sequence[Source]
) -> Iterator[Outcome]:
    """Yield options that were set and do nothing in this run.

    Args:
        given: the sources as the user gave them, `sources` with their losses settled.
    """
    losses, plain = {name for source in sources for name in source.losses}, TrainingConfig()
    idle = {
        name: (f"no loss of this run reads it ({', '.join(sorted(losses))})", f"a loss of {', '.join(sorted(readers))}")
        for name, readers in READERS.items()
        if getattr(config, name) != getattr(plain, name) and not readers & losses
    }
    for name in ("guide_margin", "guide_relative"):
        if getattr(config, name) != getattr(plain, name) and not config.guide:
            idle.setdefault(name, ("there is no guide", "a guide: --set guide=self"))
    if config.losses and all(source.losses for source in given):
        idle["losses"] = "each source has losses of its own", "a source without"
    if config.mixing == "mixed" and len(sources) == 1:
        idle["mixing"] = "there is one source", "several: --mix, or FILE:LOSS"
    if not preparation.merge and preparation.lora is None:
        idle["merge"] = "there are no adapters", "adapters: --set lora.rank=8"
    for name, (why, needed) in idle.items():
        value = preparation.merge if name == "merge" else getattr(config, name)
        yield Finding(
            "option-without-effect",
            "warning",
            found=f"{name} is set to {value!r} and does nothing: {why}",
            expected=needed,
            action="leave it out, or give what it needs",
            place="configuration",
        )


def check_settings(
    config: TrainingConfig, losses: Collection[str], *, rows: int, dimension: int, asked: int = 0
) -> Iterator[Outcome]:
    """Yield settings that cannot do what they say.

    Args:
        losses: names of all losses of the run.
        rows: rows of the training set.
        dimension: length of the model's embeddings.
        asked: the batch that the user asked for, 0 where it was chosen.
    """
    if asked > rows:
        yield Finding(
            "batch-larger-than-rows",
            "warning",
            found=f"a batch of {asked} from {rows} rows: an epoch is one step",
            expected=f"a batch far below {rows}",
            action=f"set --batch to {max(rows // 45, 1)} or so",
            place="configuration",
        )
    own = sorted(READERS["temperature"] & set(losses))
    if own and not 0.005 <= config.temperature < 1:
        large = config.temperature >= 1
        yield Finding(
            "temperature",
            "warning",
            found=f"{', '.join(own)} with temperature {config.temperature:g}: cosines from −1 to 1 become logits from "
            f"{-1 / config.temperature:g} to {1 / config.temperature:g}",
            expected="0.01 to 0.1",
            action=f"a scale of {config.temperature:g} is a temperature of {1 / config.temperature:g}"
            if large
            else "set --set temperature=0.05",
            place="configuration",
        )
    yield from _check_dimensions(config.dimensions, dimension)


def _check_dimensions(dimensions: Sequence[int], width: int) -> Iterator[Outcome]:
    if not dimensions:
        return
    if min(dimensions) < 1 or max(dimensions) > width:
        yield Finding(
            "matryoshka-dimensions",
            "error",
            found=f"matryoshka dimensions {list(dimensions)} of a model with {width}",
            expected=f"1 to {width}",
            action=f"leave out those that are not from 1 to {width}",
            place="configuration",
        )
    elif list(dimensions) != sorted(set(dimensions), reverse=True) or width not in dimensions:
        whole = [width, *sorted(set(dimensions) - {width}, reverse=True)]
        yield Finding(
            "matryoshka-dimensions",
            "warning",
            found=f"matryoshka dimensions {list(dimensions)}: twice, not descending, or without the whole {width}",
            expected=f"{whole}",
            action=f"--set 'dimensions={whole}', unless the whole embedding is not to be trained",
            place="configuration",
        )
