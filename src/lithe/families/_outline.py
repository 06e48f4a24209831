"""A checkpoint before its weights are read: the empty model, and which stored tensor becomes which of its tensors.

Families make one of another project's folder. `lithe.load` reads the weights into it (`filled`), `explain` looks at the
model alone, and `lithe cut` copies the bytes of the tensors that it keeps (`origins`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lithe import checkpoint, source
from lithe.families import _lerobot


@dataclass(frozen=True)
class Outline:
    """What a folder says about a policy without a look at its weights."""

    model: Any  # a Family on the meta device, its preprocessing in place
    folder: Path
    names: Callable[[str], str | None]  # a stored key to the model's name, to UNUSED, or to None where nobody knows it
    convert: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # by the model's name; keeps dtypes

    def filled(self) -> Any:
        """The model with its weights in float32, in eval mode. Raises ValueError as `origins` does, and for damage."""
        weights = _lerobot.tensors(self.folder, self.names)
        for name in self.convert.keys() & weights.keys():
            weights[name] = self.convert[name](weights[name])
        checkpoint.fill(self.model, weights, str(self.folder), torch.float32)
        return self.model.eval()

    def origins(self) -> dict[str, list[str]]:
        """For each of the model's tensors the stored keys that hold it: one, or several with the same values.

        Reads names and shapes only. Raises ValueError naming tensors that are unknown, missing or misshaped.
        """
        shapes, found, unknown = source.shapes(self.folder), dict[str, list[str]](), []
        for key in shapes:
            name = self.names(key)
            if name is None:
                unknown.append(key)
            elif name != _lerobot.UNUSED:
                found.setdefault(name, []).append(key)
        _lerobot.refuse_unknown(self.folder, unknown)
        become = {name: self._converted(name, shapes[keys[0]]) for name, keys in found.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        checkpoint.check_fit(wanted, become, str(self.folder))
        return found

    def _converted(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name not in self.convert:
            return shape
        return tuple(self.convert[name](torch.empty(shape, device="meta")).shape)
