"""FSDP2: parameters, gradients, averages and optimiser state cut over all processes; only the student, not its teacher.

Switched on by the launcher (`accelerate launch --use_fsdp --fsdp_version 2`) and wrapped here with PyTorch's own
`fully_shard`, because accelerate does so on GPUs alone and would have to be told the layers of every family. Each layer
of each stack is one unit, the rest of the model another. Weights are gathered in float32 and autocast rounds them, so
the numbers are those of one process. Whatever leaves the trainer is made whole again: checkpoints know no shards.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lithe._processes import join
from lithe.families.base import Family

ENTRIES = ("prefix_only", "read")  # methods beside `forward` by which families enter a layer: FSDP must be told of each


def plugin() -> FullyShardedDataParallelPlugin | None:
    """The launcher's FSDP settings, None when it asked for none. Raises ValueError for one that would be ignored."""
    if not parse_flag_from_env("ACCELERATE_USE_FSDP") or join().backend is None:
        return None
    found = FullyShardedDataParallelPlugin()
    refused = {
        "--fsdp_version 1": found.fsdp_version != 2,
        "--fsdp_auto_wrap_policy": found.auto_wrap_policy is not None,
        "--fsdp_offload_params": isinstance(found.cpu_offload, CPUOffloadPolicy),
        "--fsdp_activation_checkpointing": found.activation_checkpointing,
        "FSDP_IGNORED_MODULES": found.ignored_modules is not None,
        "--use_parallelism_config": parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"),
    }
    wrong = [name for name, asked in refused.items() if asked]
    if wrong:
        raise ValueError(
            f"lithe does not train with {wrong[0]}: launch with --use_fsdp --fsdp_version 2; each layer is sharded by "
            "itself without being named"
        )
    return found


def shard(model: Family, device: torch.device, settings: FullyShardedDataParallelPlugin) -> None:
    """Cut the parameters of `model` over all processes, in place, each on its own device; once is enough."""
    if isinstance(model, FSDPModule):
        return
    mesh = init_device_mesh(device.type, (join().num_processes,))
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=bool(settings.reshard_after_forward))
        for name in ENTRIES:
            if callable(getattr(layer, name, None)):
                register_fsdp_forward_method(layer, name)
    fully_shard(model, mesh=mesh)


def layers(model: Family) -> list[nn.Module]:
    """The layers of all stacks; a place without parameters is none."""
    lists: list[Any] = [model.get_submodule(path) for stack in model.stacks for path in stack.paths]
    return [layer for each in lists for layer in each if any(True for _ in layer.parameters())]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one in shards every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole copies on the CPU, made one by one; without `keep` nothing, for a process that only takes part."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.to("cpu", copy=True)
    return found


def like(place: Tensor, tensor: Tensor) -> Tensor:
    """A copy of `tensor` on the device of `place`, in shards if that is; every process has all of it."""
    tensor = tensor.detach()
    if isinstance(place, DTensor) and not isinstance(tensor, DTensor):
        own = distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements, src_data_rank=None)
        return own.clone()  # the shard alone; what it was cut from can go
    return tensor.clone() if isinstance(tensor, DTensor) else tensor.to(place.device, copy=True)


def skeleton(model: Family) -> Family:
    """The same modules on the meta device, to be filled with weights when the model itself is in shards."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)
