"""Agreement: whether two ways to encode the same texts have the same vectors and gradients, asked before a run.

Packed texts are tried beside padded ones on the device that will train: nobody has to believe that a kernel, its
library and this network fit together. What fails is a reason to pad, not an end of the run; only an error that leaves
the device unusable (an illegal memory access) cannot be caught by anyone in this process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embedsmith.choices import Precision
from embedsmith.devices import repeatable
from embedsmith.networks import autocast
from embedsmith.sharding import layers_of

Encode = Callable[[], Tensor]  # the same texts in the same order, (n, d)
SPREAD = 0.25  # largest distance of the two ways, as a share of the distance between texts (some bases: cosine .99)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far two ways may lie apart.

    Attributes:
        vectors: the longest difference of two unit vectors. gradients: their difference, of their length.
    """

    vectors: float
    gradients: float


# Packed and padded differ on a CPU by 2e-6 (vectors) and 7e-6 (gradients) in fp32, by .02 and .12 in bf16, where either
# is .01 and .09 off fp32: SmolLM2-135M, the deeper of two. .0447 is a cosine of .999.
BOUNDS: dict[Precision, Bounds] = {"fp32": Bounds(1e-5, 1e-4), "bf16": Bounds(0.0447, 0.3)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """What came of a trial.

    Attributes:
        found: both ways are the same within the bounds.
        told: half a sentence, with figures or the error.
    """

    found: bool
    told: str


def compare(network: Any, packed: Encode, padded: Encode, precision: Precision) -> Agreement:
    """Return whether `packed` gives the vectors and the gradients that `padded` gives.

    Vectors without dropout, of unit length; gradients of the first trained layer, which come through all of them. Then
    `packed` runs once as in training, dropout and all, and must only come through. The network, its gradients, its
    mode, and all random states are afterwards as they were before.

    Raises:
        what `padded` raises; an error of `packed` is an answer.
    """
    with _untouched(network), repeatable(network.device.type):
        network.eval()
        right = _run(network, padded, precision)
        try:
            agreement = _judge(_run(network, packed, precision), right, BOUNDS[precision])
            if agreement.found:
                network.train()
                _require_finite(_run(network, packed, precision))
        except Exception as error:  # noqa: BLE001  whatever goes wrong packed, there is the padded way
            return Agreement(False, f"{type(error).__name__}: {_first_line(error)}")
    return agreement


def _run(network: Any, encode: Encode, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return unit vectors (n, d) and one row of gradients, both float32."""
    with torch.enable_grad(), autocast(network, precision):
        vectors = torch.nn.functional.normalize(encode().float(), dim=1)
    pull = torch.linspace(-1, 1, vectors.numel(), device=vectors.device).view_as(vectors)
    found = torch.autograd.grad((vectors * pull).sum(), _probed(network), allow_unused=True)
    return vectors.detach(), torch.cat([part.float().flatten() for part in found if part is not None])


def _probed(network: Any) -> list[Tensor]:
    """Return the trained weights of the first layer that has any, those of all where there are no layers."""
    for layer in (*layers_of(network[0].auto_model), network):
        if found := [weight for weight in layer.parameters() if weight.requires_grad]:
            return found
    raise ValueError("nothing is trained")


def _judge(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], bounds: Bounds) -> Agreement:
    (vectors, gradients), (padded, pull) = found, right
    apart = (vectors - padded).norm(dim=1)
    spread = (padded - padded.mean(dim=0)).norm()
    furthest, share = float(apart.max()), float(apart.norm() / spread.clamp(min=1e-12))
    turned = float((gradients - pull).norm() / pull.norm().clamp(min=1e-12))
    told = f"vectors {furthest:.1g} apart, {share:.1g} of what texts differ by, gradients {turned:.1g}"
    alike = len(padded) == 1 or share <= SPREAD  # one text has nothing to differ from
    return Agreement(furthest <= bounds.vectors and alike and turned <= bounds.gradients, told)


def _require_finite(found: tuple[Tensor, Tensor]) -> None:
    if not all(bool(part.isfinite().all()) for part in found):
        raise ValueError("with dropout, vectors or gradients are not finite")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


@contextlib.contextmanager
def _untouched(network: Any) -> Iterator[None]:
    """Leave the mode of each module and the random states of processor and device as they are."""
    modes = [(module, module.training) for module in network.modules()]
    device = None if network.device.type == "cpu" else torch.get_device_module(network.device)
    state = device.get_rng_state() if device is not None else None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if device is not None:
            device.set_rng_state(state)
