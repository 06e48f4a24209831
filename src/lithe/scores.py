"""Layer scores: how important each layer of the trunk is, in five ways, from one calibration pass. Higher = keep.

    cos      1 - mean cosine of the streams entering layers l and l+1 (EfficientVLA, arXiv 2506.10100)
    cka      1 - linear CKA of the same two streams (CLP, arXiv 2606.20246)
    gate     mean |dL/dg_l| at g = 1, where layer l counts as lerp(h, layer(h), g_l) (VLADrop, arXiv 2606.27755)
    fisher   mean squared gradient dL/dw of the layer's weights
    taylor   |sum of dL/dw * w|: to first order, how much L changes when the layer's weights become 0

L is the family's task loss. A layer is what stands at that place in all lists of the trunk's Stack. Sample counts, what
is averaged over what, and how two streams become one number are our choice: no paper says. Shape legend: types.py; M
sampled tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.registry import suggestion
from lithe.surgery import find_stack
from lithe.types import Batch, Draw, Out, Route, Tap

KINDS = ("cos", "cka", "gate", "fisher", "taylor")
STREAMS = ("prefix", "suffix")
ROWS = 4096  # tokens of each stream that CKA is computed from
EXACT = 1e-12  # what rounding makes of 1 - 1


def scores(
    teacher: Family,
    data: Data,
    kinds: Sequence[str] = KINDS,
    samples: int = 64,
    batch: int = 8,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """{kind: [L]}, from one forward and backward pass in float32 over `samples` frames (fewer if the data has fewer).

    cos is the mean over valid tokens, cka that of ROWS sampled ones; both are computed for the prefix and for the
    suffix, and the plain mean of the two counts, however many tokens each has. A stream that the loss does not read
    behind a layer is left out there. So behind pi's last trunk layer, which in use computes keys and values only: its
    cos and cka are those of the expert alone. gate is a mean over samples. fisher takes the gradient of a batch's mean
    loss, so that `batch` is part of what it means; taylor takes that of the whole calibration set.

    device: where to compute, with copies of the weights (default: where the teacher is). The teacher is left as it was,
    to the last flag. Raises ValueError for an unknown kind, for fewer than two frames, for a family that does not show
    the streams asked for, and for scores that are not finite.
    """
    total = min(samples, len(data))
    _check(kinds, total, batch)
    meter = _Meter(teacher, kinds, total, seed, device or next(teacher.parameters()).device)
    frames = np.random.default_rng(seed).choice(len(data), total, replace=False)
    generator = torch.Generator().manual_seed(seed)
    with _evaluating(teacher):
        for first in tqdm(range(0, total, batch), desc="calibrate", unit="batch", disable=None):
            raw = data.samples(frames[first : first + batch], teacher.spec.horizon)
            inputs = teacher.batch(raw).to(meter.device)
            meter.add(inputs, teacher.draw(inputs, generator, augment=False))
    found: dict[str, Callable[[], list[float]]] = {
        "cos": meter.cos,
        "cka": meter.cka,
        "gate": meter.gate,
        "fisher": meter.fisher,
        "taylor": meter.taylor,
    }
    return {kind: _finite(kind, found[kind]()) for kind in kinds}


def agreed(teacher: Family, data: Data, kind: str, samples: int = 64) -> list[float]:
    """One kind of `scores` for a training run: on the run's device, and in every process those of the main one."""
    from lithe import _processes  # brings accelerate, which nobody needs who only looks at a method

    device = _processes.join().device
    found_L = torch.tensor(
        scores(teacher, data, (kind,), samples, device=device)[kind], dtype=torch.float64, device=device
    )
    _processes.equalise([found_L])  # layers are chosen from these: all processes must cut alike
    return found_L.tolist()


def cka(x_MD: Tensor, y_MD: Tensor) -> float:
    """Linear CKA of two sets of rows, columns centred, in float64: 1 for sets equal up to rotation and scale."""
    x, y = (rows.double() - rows.double().mean(dim=0) for rows in (x_MD, y_MD))
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


class _Meter:
    """What the scores are made of, collected over batches."""

    def __init__(self, model: Family, kinds: Sequence[str], total: int, seed: int, device: torch.device):
        self.model, self.total, self.device = model, total, device
        self.depth = model.depth("trunk")
        every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        # Own leaves of the graph, in the place of the teacher's: its flags, gradients and dtype never come into it.
        self.tensors = {name: _single(tensor, device) for name, tensor in every.items()}
        self.layers, self.sizes = self._layers(), [0] * self.depth
        for name, layer in self.layers.items():
            self.sizes[layer] += self.tensors[name].numel()
        self.leaves = list(self.layers) if {"fisher", "taylor"} & set(kinds) else []
        for name in self.leaves:
            self.tensors[name].requires_grad_()
        self.cosines, self.sampling = "cos" in kinds, "cka" in kinds
        streams = STREAMS if self.cosines or self.sampling else ()
        self.taps = [Tap(stream, i) for stream in streams for i in range(self.depth + 1)]
        self.unread: set[Tap] = set()  # streams that the loss does not depend on
        self.sums: dict[tuple[str, int], float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)
        self.rows: dict[Tap, list[Tensor]] = defaultdict(list)
        self.picker, self.share = torch.Generator().manual_seed(seed), -(-ROWS // total)
        self.gates_L = torch.zeros(self.depth, dtype=torch.float64)
        self.squares, self.products = [0.0] * self.depth, [0.0] * self.depth

    def _layers(self) -> dict[str, int]:
        """The layer that each parameter of the stack belongs to."""
        paths = find_stack(self.model, "trunk").paths
        starts = {f"{path}.{i}.": i for path in paths for i in range(self.depth)}
        names = [name for name, _ in self.model.named_parameters()]
        return {name: i for name in names for start, i in starts.items() if name.startswith(start)}

    def add(self, inputs: Batch, draw: Draw) -> None:
        """The one pass over a batch."""
        share_BL = torch.ones(len(inputs), self.depth, device=self.device, requires_grad=True)
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            route = Route((True,) * self.depth, share_BL)
            out = functional_call(self.model, self.tensors, (inputs, draw, self.taps, route))
            self._demand_streams(out)
            loss = self.model.task_loss(out)
        behind = [tap for tap in self.taps if tap.layer and out.taps[tap].requires_grad]
        leaves = [self.tensors[name] for name in self.leaves]
        asked = [share_BL, *(out.taps[tap] for tap in behind), *leaves]
        gate_BL, *found = torch.autograd.grad(loss, asked, allow_unused=True)
        self.unread |= {tap for tap, gradient in zip(behind, found) if gradient is None}
        self.gates_L += len(inputs) * gate_BL.double().abs().sum(dim=0).cpu()  # the loss is a mean over samples
        for name, weight, gradient in zip(self.leaves, leaves, found[len(behind) :], strict=True):
            if gradient is not None:
                gradient, layer = gradient.double(), self.layers[name]
                self.squares[layer] += len(inputs) * float(gradient.square().sum())
                self.products[layer] += len(inputs) * float((gradient * weight.detach()).sum())
        for stream in STREAMS if self.taps else ():
            self._look(stream, out)

    def _demand_streams(self, out: Out) -> None:
        missing = [tap for tap in self.taps if tap not in out.taps]
        if missing:
            raise ValueError(
                f"{self.model.name} does not show the {missing[0].kind} stream entering layer {missing[0].layer}, "
                "which cos and cka compare: choose layers by gate, fisher or taylor"
            )

    @torch.no_grad()
    def _look(self, stream: str, out: Out) -> None:
        """Compare and sample the streams of one kind."""
        seen = [out.taps[Tap(stream, i)].detach() for i in range(self.depth + 1)]
        valid_BN = out.prefix_BN if stream == "prefix" else seen[0].new_ones(seen[0].shape[:2], dtype=torch.bool)
        if self.cosines:
            self.tokens[stream] += int(valid_BN.sum())
            for layer in range(self.depth):
                cosine_BN = cosine_similarity(seen[layer].double(), seen[layer + 1].double(), dim=-1)
                self.sums[stream, layer] += float(cosine_BN[valid_BN].sum())
        if self.sampling:
            chosen_M = torch.cat([i * valid_BN.shape[1] + self._pick(valid) for i, valid in enumerate(valid_BN)])
            for i, x in enumerate(seen):
                self.rows[Tap(stream, i)].append(x.flatten(0, 1)[chosen_M.to(x.device)])

    def _pick(self, valid_N: Tensor) -> Tensor:
        """Some of a sample's valid tokens."""
        places = valid_N.cpu().nonzero()[:, 0]
        return places[torch.randperm(len(places), generator=self.picker)[: self.share]]

    def cos(self) -> list[float]:
        return self._over_streams(lambda stream, i: self.sums[stream, i] / self.tokens[stream])

    def cka(self) -> list[float]:
        rows = {tap: torch.cat(parts) for tap, parts in self.rows.items()}
        return self._over_streams(lambda stream, i: cka(rows[Tap(stream, i)], rows[Tap(stream, i + 1)]))

    def gate(self) -> list[float]:
        return (self.gates_L / self.total).tolist()

    def fisher(self) -> list[float]:
        return [square / self.total / size for square, size in zip(self.squares, self.sizes)]

    def taylor(self) -> list[float]:
        return [abs(product) / self.total for product in self.products]

    def _over_streams(self, alike: Callable[[str, int], float]) -> list[float]:
        """1 - the mean likeness of the streams that are read behind each layer; exactly 0 for equal ones."""
        found = []
        for layer in range(self.depth):
            read = [stream for stream in STREAMS if Tap(stream, layer + 1) not in self.unread]
            assert read, f"nothing reads a stream behind layer {layer}"
            different = 1.0 - math.fsum(alike(stream, layer) for stream in read) / len(read)
            found.append(0.0 if different < EXACT else different)
        return found


def _check(kinds: Sequence[str], total: int, batch: int) -> None:
    """Raises ValueError for what makes no scores."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(
                f"there is no layer score {kind!r}{suggestion(kind, KINDS)}; choose from {', '.join(KINDS)}"
            )
    if batch < 1:
        raise ValueError(f"layer scores need a batch of at least one frame, not {batch}")
    if total < 2:
        raise ValueError(
            f"layer scores from {total} frame say nothing about layers, only about that frame: calibrate on at least "
            "two, better 64 (samples), of data that has as many"
        )


def _single(tensor: Tensor, device: torch.device) -> Tensor:
    """The same numbers on the device, floating-point ones in float32; no copy where nothing changes."""
    return tensor.detach().to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)


def _finite(kind: str, values: list[float]) -> list[float]:
    bad = [layer for layer, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise ValueError(f"the {kind} score of layer {bad[0]} is not finite: look for NaN in the data and the teacher")
    return values


@contextmanager
def _evaluating(model: Family) -> Iterator[None]:
    """Eval mode, and afterwards every module in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
