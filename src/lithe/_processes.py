"""The processes of one run: which samples each of them takes, and what they tell each other.

Started by `accelerate launch` or `torchrun`, one process a device; a single process is the common case and costs
nothing here. What communicates must be called by all processes, in the same order and from the main thread. Losses are
means over equal shares of a batch, so their mean over processes is that of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env
from torch import Tensor, distributed

from lithe.families.base import Family
from lithe.recipe import Train
from lithe.types import Batch, Draw

GROUP = 8  # samples that share one generator; part of what a seed means. One each would double the cost of a draw
PATIENCE = timedelta(hours=2)  # the others wait while the main process downloads, decodes or writes a checkpoint
FAILED = -(2**62)
KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)

T = TypeVar("T")


@cache
def join() -> PartialState:
    """This process among those of the run. Raises ValueError when it cannot find the others."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > state.num_processes:
        raise ValueError(
            f"{started} processes were started, but accelerate sees no device for each of them: on a machine with GPUs "
            "look why torch does not see these; to train on CPUs, set ACCELERATE_USE_CPU=true"
        )
    return state


def accelerator(train: Train, out: str | Path | None) -> Accelerator:
    """What moves, wraps and logs. Raises ValueError for what the launcher was told and lithe would not obey."""
    join()
    made = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=train.accumulate),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(train.trackers) or None,
        project_dir=str(out) if out else None,
    )
    check(made.mixed_precision, made.distributed_type)
    return made


def check(mixed_precision: str, kind: DistributedType) -> None:
    """Raises ValueError for settings of the launcher that are not lithe's."""
    if mixed_precision != "no":
        raise ValueError(
            f"the launcher asks for mixed precision {mixed_precision!r}, but train.precision in the recipe decides: "
            "launch with --mixed_precision no"
        )
    if kind not in KINDS:
        raise ValueError(f"lithe trains on several devices with DDP or FSDP2, not with {kind.value}: launch with those")


# -- what each process takes -------------------------------------------------------------------------------------------


def rows(batch: int) -> range:
    """The samples of a step's batch that this process takes. Raises ValueError when they cannot be shared equally."""
    state = join()
    share, rest = divmod(batch, state.num_processes)
    if rest:
        raise ValueError(
            f"train.batch is {batch}, which {state.num_processes} processes cannot share equally: choose a multiple of "
            f"{state.num_processes}, or start another number of processes"
        )
    return range(state.process_index * share, (state.process_index + 1) * share)


def draw(family: Family, batch: Batch, mine: range, train: Train, step: int) -> Draw:
    """The draw for the samples `mine` of a step; `batch` holds only these.

    A function of seed, step and sample alone: every GROUP samples have a generator of their own. A process that holds a
    part of a group draws all of it, with samples of its own in the place of the absent ones, and keeps its part.
    """
    parts = []
    for group in range(mine.start // GROUP, -(-mine.stop // GROUP)):
        generator = torch.Generator().manual_seed((train.seed * 1_000_003 + step) * 1_009 + group)
        first, last = group * GROUP, min((group + 1) * GROUP, train.batch)
        held = range(max(first, mine.start), min(last, mine.stop))
        if len(held) == last - first:
            asked = batch.take(slice(held.start - mine.start, held.stop - mine.start))
            parts.append(family.draw(asked, generator, train.draws, train.augment))
        else:
            places = [min(max(i, held.start), held.stop - 1) - mine.start for i in range(first, last)]
            drawn = family.draw(batch.take(places), generator, train.draws, train.augment)
            parts.append(drawn.take(slice(held.start - first, held.stop - first)))
    return Draw.join(parts)


# -- what they tell each other -----------------------------------------------------------------------------------------


def mean(values: Tensor) -> Tensor:
    """Elementwise mean over the processes."""
    state = join()
    if state.num_processes == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / state.num_processes


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """The same for the gradients of modules that no wrapper looks after."""
    for parameter in parameters if join().num_processes > 1 else ():
        if parameter.grad is not None:
            parameter.grad.copy_(mean(parameter.grad))


def equalise(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values, in place."""
    for tensor in tensors if join().num_processes > 1 else ():
        distributed.broadcast(tensor.detach(), 0)


def on_main(work: Callable[[], Any]) -> int:
    """Do `work` on the main process while the others wait, and tell all of them the whole number it returned, if any.

    Where it fails, the main process raises its error and the others a RuntimeError, so that none waits for ever.
    """
    state, answer = join(), FAILED
    try:
        if state.is_main_process:
            answer = work() or 0
    finally:
        if state.num_processes > 1:
            told = torch.tensor(answer, device=state.device)
            distributed.broadcast(told, 0)
            answer = int(told)
    if answer == FAILED:
        raise RuntimeError("the main process failed, its own message says why; this one stops with it")
    return answer


def in_turn(make: Callable[[], T]) -> T:
    """What `make` returns, made by the main process first: what it downloads or decodes is there for the others."""
    made: list[T] = []
    on_main(lambda: made.append(make()))
    return made[0] if made else make()
