"""What one chunk asks of a CUDA device: launches, kernels, and how often the host waits. It is profiled, never timed.

On other devices nothing is counted and nothing is said. A launch is a call of the host, and to start a captured graph
is one; kernels are what the device then ran. Copies and fills of memory are neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType

from lithe.measure import profiled

CHUNK = "lithe: one chunk"
STARTS = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")
COPIES = ("Memcpy", "Memset")


def launches(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """{"launches", "kernels", "host_syncs"} of one call; empty where the device has no launches to count."""
    if device.type != "cuda":
        return {}
    return counted(profiled(call, device, CHUNK))


def counted(events: Iterable[Any]) -> dict[str, int]:
    """The counts of a profile; empty where it saw no kernel, which means that it could not look at the device."""
    found = list(events)
    host = [event for event in found if event.device_type == DeviceType.CPU]
    span = next(event.time_range for event in host if event.name == CHUNK)
    inside = [event.name for event in host if span.start <= event.time_range.start <= span.end]
    kernels = [
        event.name
        for event in found
        if event.device_type == DeviceType.CUDA
        and event.name != CHUNK
        and not event.is_user_annotation
        and not event.name.startswith(COPIES)
    ]
    if not kernels:
        return {}
    return {
        "launches": sum(name.startswith(STARTS) for name in inside),
        "kernels": len(kernels),
        "host_syncs": sum(_waits(name) for name in inside),
    }


def _waits(name: str) -> bool:
    """Whether the host stands still in this call of the driver or the runtime; `cudaMemcpy` is the blocking one."""
    return name == "cudaMemcpy" or (name.startswith("cu") and "Synchronize" in name)
