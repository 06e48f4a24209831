"""What the fast runtimes share: they execute a packed form of the model, checked against `eager` when it is attached.

The packed form is built beside the model, which is never written to: detaching is throwing the runtime away. It is a
picture of the weights; attach again after training. One observation is answered at a time. Shape legend: types.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from lithe.families._packed import Feed, PackedModel
from lithe.families._packing import Tower
from lithe.families.base import Family
from lithe.runtimes.base import Runtime
from lithe.types import Batch, Cost, Route

LIMIT = 1e-3  # of a float32 policy's error, relative to its largest action
LEAST_COSINE = 0.9999  # of a bfloat16 policy's actions: two roundings of the same sums


class Fast(Runtime):
    """`error` and `cosine` say how the actions of one example differ from eager's for the same noise and route: the
    largest difference in model units, and the angle. Raises ValueError for a model that cannot be packed, a device
    that is not among `devices`, or actions that differ by more than rounding."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    least_cosine: ClassVar[float | None] = None  # asked of a runtime that rounds more than the policy's own type does
    bucketed: ClassVar[bool] = True  # prompts are padded to a few lengths, so that shapes repeat

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0):
        self.place = self._placed(model)
        self.prepare(model)
        super().__init__(model, steps, seed)
        self.form = self.packed()
        self.error, self.cosine = self._compared()
        self.reset(seed)

    def packed(self) -> Any:
        """What it executes; called once, when it is attached."""
        return self.model.packed(self.steps)

    def prepare(self, model: Family) -> None:
        """Before anything is built. Raises ValueError where this machine or model does not allow the runtime."""

    @abstractmethod
    def play(self, feed: Feed, noise_BHA: Tensor, trace: Callable[[str], Any] | None, route: Route | None) -> Tensor:
        """`chunk` for one trimmed observation."""

    def chunk(
        self,
        batch: Batch,
        noise_BHA: Tensor,
        trace: Callable[[str], Any] | None = None,
        route: Route | None = None,
    ) -> Tensor:
        for name, tensor in (("observation", batch.tokens_BT), ("noise", noise_BHA)):
            if tensor.device != self.place:
                raise ValueError(f"the {name} is on {tensor.device}, the policy on {self.place}: move one to the other")
        rows = [self.form.trim(batch.take([i]), self.bucketed) for i in range(len(batch))]
        chunks = [self.play(feed, noise_BHA[i : i + 1], trace, route) for i, feed in enumerate(rows)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def cost(self, views: int | None = None, text: int | None = None) -> Cost:
        return self.model.packed_cost(views, text, self.steps)

    def text(self, batch: Batch) -> int:
        return self.form.trim(batch, self.bucketed).batch.text_BT.shape[1]

    def facts(self) -> dict[str, Any]:
        return {"error": self.error, "cosine": self.cosine}

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from tensors(self.form)

    def refuse_on_the_way(self, model: Family) -> None:
        """For runtimes whose graphs hold all layers of a pass, and cannot stop to ask which ones to run."""
        router = model.router
        if router is not None and any(router.landing(i) is not None for i in range(model.depth())):
            raise ValueError(
                f"this student's router {router.name} decides on the way, layer by layer, and a graph of {self.name} "
                "cannot wait for it: use the runtime packed or compiled"
            )

    def _placed(self, model: Family) -> torch.device:
        places = sorted({str(p.device) for p in model.parameters()})
        if len(places) > 1:
            raise ValueError(f"the policy is spread over {', '.join(places)}: move all of it to one device")
        device = torch.device(places[0])
        if device.type not in self.devices:
            raise ValueError(
                f"the runtime {self.name} runs on {' and '.join(self.devices)}, the policy is on {device}: move it "
                f"with .to({self.devices[0]!r}), or choose another runtime"
            )
        return device

    @torch.no_grad()
    def _compared(self) -> tuple[float, float]:
        """Error and cosine for one example, along the route that this runtime took."""
        batch = self.model.example(1).to(self.place)
        noise = self.model.noise(1, torch.Generator().manual_seed(0)).to(self.place)
        mine = self.chunk(batch, noise).double()
        eager = self.model.act(batch, noise, steps=self.steps, route=self.taken[-1]).double()
        error = float((mine - eager).abs().max())
        cosine = float(torch.nn.functional.cosine_similarity(mine.flatten(), eager.flatten(), dim=0))
        half = next(self.model.parameters()).dtype == torch.bfloat16
        least = self.least_cosine or (LEAST_COSINE if half else None)
        if not (error <= LIMIT * float(eager.abs().max()) if least is None else cosine >= least):
            raise ValueError(
                f"the runtime {self.name} gives other actions than eager on this machine (largest difference "
                f"{error:.3g}, cosine {cosine:.6f}): use eager, and report it"
            )
        return error, cosine


def tensors(part: Any) -> Iterator[Tensor]:
    """Every tensor in a packed model's own fields; the model that it was made of is a module, and left out."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (PackedModel, Tower)):
        yield from tensors(vars(part))
    elif isinstance(part, (list, tuple, dict)):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from tensors(inner)
