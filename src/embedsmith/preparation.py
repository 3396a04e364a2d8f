"""Preparation: how a base becomes the network that is trained, and how the result is written.

Pooling, padding, length, prompts and adapters; what is chosen for the user is told in notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedsmith.adapters import LoraConfig, add_lora, lower_frozen, merge_lora
from embedsmith.batches import Prompts, Source, has_equal_sides
from embedsmith.choices import Precision
from embedsmith.decoders import BaseOptions, Padding, Pooling, checkpoint_gradients
from embedsmith.encoder import SIDES
from embedsmith.errors import ConfigurationError, ModelError, require, require_kinds
from embedsmith.model import describe_base, load_network, read_prompts, save_network
from embedsmith.networks import default_prompt, pools_prompts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ALONE = "alone"  # the prompt of a text that is neither query nor document, where it is not the query's


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to a base before it is trained, and to the result before it is saved.

    Attributes:
        pooling: "auto" is the folder's own; for plain models the last token of decoders, the mean of encoders.
        padding: the side on which batches are filled up; None leaves it to the base.
        max_length: tokens a text is cut to; 0 leaves it to the base.
        bidirectional: attention in both directions, for plain decoders that have a switch for it.
        checkpointing: activations within a layer are computed again instead of kept: less memory, a third more time.
        lora: trains low-rank adapters only; None trains all weights.
        merge: adapters become part of the saved weights; otherwise the folder holds adapters and names its base.
        prompts: put before queries and documents; saved with the model. None takes the base's own, if it has any.
    """

    pooling: Pooling = "auto"
    padding: Padding | None = None
    max_length: int = 0
    bidirectional: bool = False
    checkpointing: bool = False
    lora: LoraConfig | None = None
    merge: bool = True
    prompts: Prompts | None = None

    def __post_init__(self) -> None:
        require_kinds(self)
        for name, kind in _NESTED.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                own = ", ".join(f"{name}.{item.name}" for item in fields(kind))
                raise ConfigurationError(f"{name} is {value!r}", expected=f"its values one by one: {own}")
        if self.prompts is not None:
            require_kinds(self.prompts, prefix="prompts.")

    def options(self, attention: str | None = None) -> BaseOptions:
        """Return what is asked of the base where it is loaded."""
        return BaseOptions(attention, self.pooling, self.padding, self.bidirectional, self.max_length)


_NESTED: Mapping[str, type[Any]] = {"lora": LoraConfig, "prompts": Prompts}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network ready to be trained, and what was chosen for it."""

    network: SentenceTransformer
    preparation: Preparation
    notes: tuple[str, ...]


def preparation_from(values: Mapping[str, Any]) -> Preparation:
    """Return the preparation with `values`, tables `lora` and `prompts`, over the defaults; no key may be unknown."""
    found = dict(_known(Preparation, values, "preparation"))
    for name, kind in _NESTED.items():
        if isinstance(found.get(name), Mapping):
            found[name] = kind(**_known(kind, found[name], name))
    return Preparation(**found)


def _known(kind: type[Any], values: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    known = [item.name for item in fields(kind)]
    unknown = sorted(set(values) - set(known))
    require(not unknown, f"unknown key in {what}: {', '.join(unknown)}", f"any of {', '.join(known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Reading:
    """With what prompts the texts of a run are read.

    Attributes:
        prompts: for sources that have none of their own. saved: those of the model that comes out.
        named: the run, a source or the base defines prompts, so the base's default prompt must not come on top.
    """

    prompts: Prompts
    saved: Prompts
    named: bool
    notes: tuple[str, ...] = ()


def settle_prompts(base: str | Path, sources: Sequence[Source], asked: Prompts | None) -> Reading:
    """Return how the texts are read, and so how the model will read: as `asked`, else as the base or sources say.

    Prompts for queries and documents that the base was saved with are used, and saved again. Symmetric rows get the
    base's default prompt, as a plain `encode` would.
    """
    if asked is not None:
        return Reading(asked, asked, named=True)
    found, default = read_prompts(base)
    own = Prompts(*(found.get(name, "") for name in SIDES))
    read = replace(own, alone=default) if own != Prompts() else own
    parted: Counter[Prompts] = Counter()
    for source in sources:
        parted[source.prompts or read] += sum(not has_equal_sides(row, source.symmetric) for row in source.examples)
    saved, rows = max(parted.items(), key=lambda item: item[1])  # the first of equals
    notes = []
    if parted[read] and read != own:
        notes.append(
            f"the base's own prompts are put before queries ({own.query!r}) and documents ({own.document!r}), since "
            "the run names none: --set prompts.query='' for none at all"
        )
    if saved != read and rows:
        more = f", which {rows} of {parted.total()} rows have" if len(+parted) > 1 else ""
        notes.append(f"prompts saved with the model: queries {saved.query!r}, documents {saved.document!r}{more}")
    named = read != own or any(source.prompts not in (None, Prompts()) for source in sources)
    return Reading(read, saved if rows else read, named, tuple(notes))


def prepare(
    base: str | Path,
    preparation: Preparation,
    *,
    precision: Precision,
    seed: int,
    attention: str | None = None,
    own_prompts: bool = False,
) -> Prepared:
    """Return the network at `base`, prepared; adapters are drawn from `seed`.

    Args:
        own_prompts: the texts come with prompts, so the base's default prompt is not put before them as well.
    """
    options = preparation.options(attention)
    notes = list(describe_base(base, options))
    network = load_network(base, options)
    default = default_prompt(network)
    if own_prompts:
        network.default_prompt_name = None
    its_own = preparation.prompts is None and any(network.prompts.get(name) for name in SIDES)
    if own_prompts and default and not its_own:
        notes.append(f"the base's default prompt {default!r} is left out: the run names its prompts")
    if preparation.max_length:
        notes.append(f"texts are cut at {preparation.max_length} tokens, as asked")
    if preparation.lora is not None:
        add_lora(network, preparation.lora, seed=seed)
        trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        whole = sum(weight.numel() for weight in network.parameters())
        notes.append(f"LoRA: {trained:,} of {whole:,} weights are trained ({trained / whole:.1%})")
        if precision == "bf16":
            lower_frozen(network)
    if preparation.checkpointing:
        checkpoint_gradients(network)
    return Prepared(network, preparation, tuple(notes))


def require_pooled(network: SentenceTransformer, reading: Reading, sources: Sequence[Source]) -> None:
    """Raise `ModelError` if texts have prompts and the network leaves their tokens out of the pooling.

    Encoding knows one prompt for all texts; the texts of a run may each have another.
    """
    given = {reading.prompts, *(source.prompts for source in sources)} - {None, Prompts()}
    prompted = bool(given) or bool(default_prompt(network))
    if prompted and not pools_prompts(network):
        raise ModelError(
            "the base leaves its prompt out of the pooling (include_prompt is false), and the texts have prompts",
            expected="a base that pools all tokens, or texts without prompts",
            action="--set prompts.query='' trains without prompts",
        )


def save_prepared(
    prepared: Prepared,
    out: Path | str,
    *,
    prompts: Prompts | None,
    card: str,
    alone: str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write the trained network as a sentence-transformers folder with its prompts, and `files` by name.

    Args:
        prompts: None leaves the base's own; where they are the base's own, its further ones stay as well.
        alone: what goes before a text that is neither query nor document; the folder's default prompt.
    """
    network, preparation = prepared.network, prepared.preparation
    if preparation.lora is not None and preparation.merge:
        network = merge_lora(network)
    if prompts is None:
        return save_network(network, out, card=card, files=files)
    named: dict[str, str] = dict(zip(SIDES, (prompts.query, prompts.document), strict=True))
    if any(named.values()) and all(network.prompts.get(name) == text for name, text in named.items()):
        named |= network.prompts
    default = next((name for name, text in named.items() if text == alone), ALONE) if alone else None
    if default is not None:
        named[default] = alone
    return save_network(network, out, card=card, prompts=named, default=default, files=files)
