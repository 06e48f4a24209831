"""What a flow policy reads of its prefix: the layers that run read the streams that enter them, and nothing else does.

A loss on any other stream teaches what no action depends on. Shape legend: types.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.types import Out, Tap


def runs(out: Out, depth: int) -> Tensor:
    """Which layers ran for which sample, bool [B, L]; all of them for a policy without a router."""
    route, size = out.route, len(out.prefix_BN)
    if route is not None and route.share_BL is not None:
        return route.share_BL.detach() > 0
    run = route.run if route is not None else (True,) * depth
    return torch.tensor(run, device=out.prefix_BN.device).expand(size, depth)


def read(out: Out, depth: int) -> Tensor:
    """Whether a later layer of the same sample reads the stream behind each layer, bool [B, L]."""
    later_BL = runs(out, depth).flip(1).cummax(dim=1).values.flip(1)
    return F.pad(later_BL[:, 1:], (0, 1), value=False)


def deepest(student: Out, teacher: Out, depth: int) -> tuple[Tensor, Tensor]:
    """The streams [B, N, D] that enter the last layer that runs, of each sample, and the teacher's at those places."""
    places = torch.arange(depth, device=student.prefix_BN.device)
    last = (runs(student, depth) * places).amax(dim=1).tolist()
    mine, theirs = (
        torch.stack([out.taps[Tap("prefix", layer)][row] for row, layer in enumerate(last)])
        for out in (student, teacher)
    )
    return mine, theirs


def before(depth: int) -> tuple[Tap, ...]:
    """All that `deepest` may ask for."""
    return tuple(Tap("prefix", layer) for layer in range(depth))
