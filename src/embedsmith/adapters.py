"""LoRA: small trainable matrices beside frozen ones, through peft; merged into the weights or saved by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedsmith.artifacts import read_json, write_json
from embedsmith.errors import ConfigurationError, MissingPartError, ModelError, require, require_kinds
from embedsmith.noise import quiet_transformers

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

NAME = "default"  # peft's own name for the one adapter
SWITCHES = ("is_causal", "use_bidirectional_attention")  # of a configuration, which adapter folders do not hold


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters: a frozen matrix W becomes W + (alpha / rank) · B A.

    Source: arXiv 2106.09685; the values are those of arXiv 2408.00690. With rank 8 and alpha 32, B A counts 4 times.
    B starts at zero, so that training starts at the base model.

    Attributes:
        rank: columns of B and rows of A, at least 1.
        alpha: the scale before it is divided by the rank, above 0.
        dropout: share of a layer's inputs that A does not see in a step, in [0, 1).
        targets: the last parts of the names of the linear modules that get an adapter, or "all-linear".

    Raises:
        ConfigurationError: a value outside its range.
    """

    rank: int = 8
    alpha: float = 32
    dropout: float = 0.1
    targets: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        require_kinds(self, prefix="lora.")
        require(self.rank >= 1, f"LoRA rank is {self.rank}", "at least 1")
        require(self.alpha > 0, f"LoRA alpha is {self.alpha}", "above 0")
        require(0 <= self.dropout < 1, f"LoRA dropout is {self.dropout}", "0 or more, less than 1")
        known = self.targets == "all-linear" or isinstance(self.targets, (tuple, list))
        require(known, f"LoRA targets are {self.targets!r}", 'a tuple of names or "all-linear"')
        require(bool(self.targets), "LoRA has no targets", 'a tuple of names or "all-linear"')


def add_lora(network: SentenceTransformer, config: LoraConfig | None = None, *, seed: int = 0) -> SentenceTransformer:
    """Return `network` (changed in place) with new adapters; only their weights, in float32, are trained.

    Args:
        seed: decides the adapters' first weights; no other random state is used or changed.

    Raises:
        ConfigurationError: the network has adapters, or no linear module of a target's name.
        MissingPartError: peft is not installed.
    """
    import torch

    config = config or LoraConfig()
    peft = _import_peft()
    model = body_of(network)
    if has_lora(network):
        raise ConfigurationError(
            "the network has adapters already", expected="a network without", action="merge them first (merge_lora)"
        )
    targets, excluded = find_targets(network, config.targets)
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        exclude_modules=excluded or None,
        task_type="FEATURE_EXTRACTION",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(wanted, NAME)
    base = Path(model.name_or_path)
    if base.is_dir():  # a relative path would be another one from another place
        wanted.base_model_name_or_path = str(base.resolve())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return network


def find_targets(
    network: SentenceTransformer, targets: tuple[str, ...] | Literal["all-linear"]
) -> tuple[list[str], list[str]]:
    """Return (last parts of names, full names to leave out) of the linear modules that `targets` means.

    A pooler is left out: its output is not used.
    """
    names = linear_names(network)
    pooler = [name for name in names if "pooler" in name.split(".")]
    known = sorted({name.rpartition(".")[2] for name in names if name not in pooler})
    if targets == "all-linear":
        return known, pooler
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise ConfigurationError(
            f"no linear module of {body_of(network).config.model_type} is called {', '.join(unknown)}",
            expected=f"some of: {', '.join(known)}" if known else "a model with linear modules",
            action='name other targets, or "all-linear"',
        )
    return list(targets), pooler


def linear_names(network: SentenceTransformer) -> list[str]:
    """Return the full names of the transformer's linear modules, in its order."""
    import torch

    return [name for name, module in body_of(network).named_modules() if isinstance(module, torch.nn.Linear)]


def body_of(network: SentenceTransformer) -> Any:
    """Return the transformers model inside `network`.

    Raises:
        ConfigurationError: there is none (a model of word vectors, say).
    """
    body: Any = network[0]
    model = getattr(body, "auto_model", None)
    if model is None:
        raise ConfigurationError(
            f"the network's first module is a {type(body).__name__}", expected="a transformer, to put adapters into"
        )
    return model


def has_lora(network: SentenceTransformer) -> bool:
    """Say whether `network` has adapters that are not merged."""
    return bool(getattr(getattr(network[0], "auto_model", None), "peft_config", None))


def lower_frozen(network: SentenceTransformer) -> int:
    """Keep the frozen linear weights of `network` (changed in place) in bfloat16; return how many values that are.

    Under bf16 autocast the products have the same values bit for bit, since autocast rounds these weights in the same
    way before each of them; norms, embeddings and adapters stay in float32. The network can then only be run under bf16
    autocast. `merge_lora` and `restore_frozen` read the float32 values again from the base.
    """
    import torch

    count = 0
    for module in _frozen_linears(network):
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.bfloat16)
            count += parameter.numel()
    return count


def is_lowered(network: SentenceTransformer) -> bool:
    """Say whether some linear weights of `network` are in bfloat16 while its norms are not."""
    import torch

    kinds = {module.weight.dtype for module in _frozen_linears(network)}
    return torch.bfloat16 in kinds and any(value.dtype == torch.float32 for value in network.parameters())


def restore_frozen(network: SentenceTransformer) -> SentenceTransformer:
    """Return `network` (changed in place) with the float32 values that `lower_frozen` rounded, read from its base.

    Raises:
        ModelError: the base's weights are not those that were lowered, or cannot be read.
    """
    import torch

    model = body_of(network)
    source = _base_name(model)
    try:
        with quiet_transformers():  # it lists the heads of the base that the network has no use for
            original = type(model).from_pretrained(
                source, config=model.config, dtype=torch.float32, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"the base {source} cannot be read again: {error}", expected="the base model") from error
    values = original.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.bfloat16:
                continue
            value = values[name.replace(".base_layer", "")].to(parameter.device)
            if not torch.equal(value.to(torch.bfloat16), parameter):
                raise ModelError(
                    f"{name} is not what {source} holds: the network's frozen weights are not those of its base",
                    expected="the weights that were lowered",
                )
            parameter.data = value
    return network


def merge_lora(network: SentenceTransformer) -> SentenceTransformer:
    """Return `network` (changed in place) with its adapters added into the weights: plain modules, all trainable again.

    Its vectors are those with the adapters, to 1e-5 in float32. What `lower_frozen` rounded is read again first.

    Raises:
        ConfigurationError: the network has no adapters.
        ModelError: lowered weights cannot be restored.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    require(has_lora(network), "the network has no adapters to merge", "a network from add_lora")
    if is_lowered(network):
        restore_frozen(network)
    model = body_of(network)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        owner, _, child = name.rpartition(".")
        setattr(model.get_submodule(owner), child, layer.get_base_layer())
    for adapter in list(model.peft_config):
        model.delete_adapter(adapter)
    return network.requires_grad_(True)


def complete_adapter(network: SentenceTransformer, folder: Path) -> None:
    """Write into an adapter's folder what its base does not say: float32 weights, and how its tokens see each other.

    sentence-transformers would otherwise load the base in whatever numbers it was saved in, and a decoder that was
    switched to attention in both directions as one that was not.

    Raises:
        ConfigurationError: the base's configuration cannot be told how its tokens see each other.
    """
    from transformers import AutoConfig

    model = body_of(network)
    switches = {name: getattr(model.config, name) for name in SWITCHES if getattr(model.config, name, None) is not None}
    loaded = AutoConfig.from_pretrained(_base_name(model), trust_remote_code=False, **switches)
    if any(getattr(loaded, name, None) != value for name, value in switches.items()):
        raise ConfigurationError(
            f"an adapter folder cannot say that its base ({model.config.model_type}) reads in both directions",
            expected="a whole model",
            action="merge the adapters before saving (merge_lora)",
        )
    file = folder / "sentence_bert_config.json"
    said = read_json(file)
    write_json(file, said | {"model_kwargs": {"dtype": "float32"}, **({"config_kwargs": switches} if switches else {})})


def _base_name(model: Any) -> str:
    configs = getattr(model, "peft_config", None)
    named = configs[NAME].base_model_name_or_path if configs and NAME in configs else None
    return str(named or model.name_or_path)


def _frozen_linears(network: SentenceTransformer) -> Iterator[torch.nn.Linear]:
    import torch

    model = body_of(network)
    shared = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad and id(module.weight) not in shared:
            yield module


def _import_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingPartError(
            "LoRA needs peft, which is not installed", action="pip install 'embedsmith[train]'"
        ) from None
    return peft
