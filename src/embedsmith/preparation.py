"""Preparation: how a base becomes the network that is trained, and how the result is written.

Pooling, padding, length, prompts and adapters; what is chosen for the user is told in notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedsmith.adapters import LoraConfig, add_lora, lower_frozen, merge_lora
from embedsmith.batches import Prompts
from embedsmith.decoders import Padding, Pooling, checkpoint_gradients
from embedsmith.errors import ConfigurationError, require_kinds
from embedsmith.model import SIDES, Precision, default_prompt, describe_base, load_network, save_network

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
        prompts: put before queries and documents; saved with the model.
    """

    pooling: Pooling = "auto"
    padding: Padding | None = None
    max_length: int = 0
    bidirectional: bool = False
    checkpointing: bool = False
    lora: LoraConfig | None = None
    merge: bool = True
    prompts: Prompts = field(default_factory=Prompts)

    def __post_init__(self) -> None:
        require_kinds(self)
        for name, kind in _NESTED.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "lora" and value is None):
                own = ", ".join(f"{name}.{item.name}" for item in fields(kind))
                raise ConfigurationError(f"{name} is {value!r}", expected=f"its values one by one: {own}")
        require_kinds(self.prompts, prefix="prompts.")


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
    if unknown:
        raise ConfigurationError(f"unknown key in {what}: {', '.join(unknown)}", expected=f"any of {', '.join(known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


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
    choices: dict[str, Any] = {
        "attention": attention,
        "pooling": preparation.pooling,
        "padding": preparation.padding,
        "bidirectional": preparation.bidirectional,
    }
    notes = list(describe_base(base, **choices, max_length=preparation.max_length))
    network = load_network(base, **choices)
    default = default_prompt(network)
    if own_prompts:
        network.default_prompt_name = None
    if own_prompts and default:
        notes.append(f"the base's default prompt {default!r} is left out: the run has prompts of its own")
    if preparation.max_length:
        notes.append(f"texts are cut at {preparation.max_length} tokens, as asked")
        network.max_seq_length = preparation.max_length
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


def save_prepared(
    prepared: Prepared,
    out: Path | str,
    *,
    prompts: Prompts,
    card: str,
    alone: str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write the trained network as a sentence-transformers folder with its prompts, and `files` by name.

    Args:
        alone: what goes before a text that is neither query nor document; the folder's default prompt.
    """
    network, preparation = prepared.network, prepared.preparation
    if preparation.lora is not None and preparation.merge:
        network = merge_lora(network)
    named = dict(zip(SIDES, (prompts.query, prompts.document), strict=True))
    default = None
    if alone:
        default = SIDES[0] if alone == prompts.query else ALONE
        named[default] = alone
    given = named if any(named.values()) else None
    return save_network(network, out, card=card, prompts=given, default=default, files=files)
