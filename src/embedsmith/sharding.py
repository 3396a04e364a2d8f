"""Sharding: every process of a run holds its share of each weight, and the whole of a layer only while it works.

torch's FSDP2 (`fully_shard`) gathers a layer's weights before it is used and leaves each process its share of the
summed gradients; averages and the optimiser's moments are shares as well. All processes have to run the network
forward and backward equally often and in the same order, or they wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def shard(network: torch.nn.Module, *, size: int) -> None:
    """Change `network` in place: its parameters become DTensors, cut along their first dimension for `size` processes.

    Each transformer layer is gathered by itself, what is left (embeddings, dense layers) as one. Gradients are summed,
    not averaged. The whole weights have to be on the device already, the same in every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device
    mesh = init_device_mesh(device.type, (size,))
    for unit in (*layers_of(network), network):
        # True for the root as well: a batch that is encoded without gradients must not leave a copy that goes stale.
        sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(enable=True)  # gloo has no other way to leave the average out


def layers_of(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules of the list that holds most weights, a transformer's layers; [] where there is no list."""
    import torch

    lists = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=lambda found: sum(weight.numel() for weight in found.parameters()), default=()))


def gather_whole(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Return the tensors with their shares put together, in the memory of the processor; {} unless `keep`.

    All processes have to call this with the same names in the same order. Tensors that are whole stay as they are.
    """
    from torch.distributed.tensor import DTensor

    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole
    return found


def spread_like(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `value`, the same whole tensor in every process, on the device of `weight` and cut as `weight` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(weight.device)
    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
