"""Other implementations of a policy, timed in the same run with the same weights: `lithe bench --peers lerobot,...`.

A peer is a session like a runtime's, but no runtime of lithe: nothing acts or serves with it. It stands beside one
policy, holds its weights and is compared with eager's actions for the same observation and noise before anything is
timed; one that does not agree is refused. What is equal and what is not goes into its row, for a ratio alone says
nothing about why. What LeRobot's policies are is in _lerobot.py. Shape legend: types.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lithe.bench import _lerobot
from lithe.bench.lanes import Feed, Lane, dtypes
from lithe.families._lerobot import CAMERA, STATE
from lithe.families.base import Family
from lithe.measure import timed
from lithe.registry import suggestion
from lithe.runtimes.base import Runtime
from lithe.runtimes.eager import Eager
from lithe.types import Batch, Observation, Route

LIMIT = 1e-3  # of a float32 peer's error, relative to eager's largest action
LEAST_COSINE = 0.995  # of a bfloat16 peer's actions: what LeRobot keeps in float32, lithe rounds
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
RECOMPILED = 8  # times that torch.compile compiles one function
Inputs = dict[str, Tensor]


class LeRobot(Runtime):
    """LeRobot's policy with the weights of this model, as `lerobot` runs it: nothing compiled."""

    name: ClassVar[str] = "lerobot"

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0):
        super().__init__(model, steps, seed)
        with contextlib.redirect_stdout(sys.stderr):  # LeRobot talks while it builds; the last line here is a Result
            self.hosted = _lerobot.host(model, steps or model.spec.steps)

    def inputs(self, batch: Batch) -> Inputs:
        """A prepared observation as LeRobot's preprocessor would leave it: pictures are floats in [0, 1]."""
        live, found = batch.live_BV[0].tolist(), dict[str, Tensor]()
        for i, camera in enumerate(self.spec.cameras[: len(live)]):
            if live[i]:
                image = batch.images_BVCYX[:, i]
                unit = image if image.is_floating_point() else image.float() / 255
                found[CAMERA + camera] = unit.clone(memory_format=torch.contiguous_format)
        found |= {"observation.language.tokens": batch.tokens_BT, "observation.language.attention_mask": batch.text_BT}
        assert batch.state_BS is not None, "an observation has a state"
        return found | {STATE: batch.state_BS[:, : self.spec.state_dim]}

    def play(self, inputs: Inputs, noise_BHA: Tensor) -> Tensor:
        """LeRobot's chunk in model units, without padded dimensions."""
        chunk: Tensor = self.hosted.policy.predict_action_chunk(inputs, noise=noise_BHA)
        return chunk

    def chunk(
        self,
        batch: Batch,
        noise_BHA: Tensor,
        trace: Callable[[str], Any] | None = None,
        route: Route | None = None,
    ) -> Tensor:
        """LeRobot does not say when it has seen and read, so that nothing is traced; it knows no routes."""
        assert route is None, "a peer runs every layer"
        return self.play(self.inputs(batch), noise_BHA)

    def infer(self, observation: Observation) -> np.ndarray:
        """LeRobot's own way from a robot's observation to its actions."""
        from lerobot.policies.utils import prepare_observation_for_inference

        device = next(self.model.parameters()).device
        arrays = {key: value for key, value in observation.items() if key != "task"}
        noise_BHA = self.model.noise(1, self.generator).to(device)
        seen = self.hosted.before(prepare_observation_for_inference(arrays, device, observation["task"]))
        actions: np.ndarray = self.hosted.after(self.play(seen, noise_BHA))[0].float().numpy()
        return actions

    def attached(self) -> None:
        """Called when it has answered at both boundaries and is about to be timed. Raises ValueError where it is not
        what its name says."""

    def held(self) -> Any:
        yield from self.hosted.policy.parameters()
        yield from self.hosted.policy.buffers()

    @property
    def not_equal(self) -> tuple[str, ...]:
        return self.hosted.not_equal


class LeRobotCompiled(LeRobot):
    """The same through torch.compile, as LeRobot does it with `compile_model`: a whole chunk, in its `compile_mode`."""

    name: ClassVar[str] = "lerobot-compiled"

    def __init__(self, model: Family, steps: int | None = None, seed: int = 0, mode: str | None = None):
        super().__init__(model, steps, seed)
        network = self.hosted.policy.model
        self.asked, self.mode = mode, mode or str(self.hosted.policy.config.compile_mode)
        network.sample_actions = torch.compile(network.sample_actions, mode=self.mode)
        self.made = [0]  # graphs compiled by all its sessions: while it was attached, and after that

    @property
    def title(self) -> str:
        return f"{self.name}:{self.asked}" if self.asked else self.name

    def play(self, inputs: Inputs, noise_BHA: Tensor) -> Tensor:
        from torch._dynamo.utils import counters

        before = counters["stats"]["unique_graphs"]
        try:
            chunk = super().play(inputs, noise_BHA)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(
                f"LeRobot's policy does not compile on this machine: leave {self.name} out ({error})"
            ) from error
        self.made[-1] += counters["stats"]["unique_graphs"] - before
        return chunk

    def attached(self) -> None:
        if not self.made[0]:  # torch.compile gives up on a function that it has compiled often, without an error
            raise ValueError(
                f"torch.compile ran {self.name} without compiling it, as it does after {RECOMPILED} policies in one "
                "run: bench fewer at once"
            )
        self.made.append(0)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "graphs": sum(self.made), "recompiled": sum(self.made[1:])}

    @property
    def not_equal(self) -> tuple[str, ...]:
        own = f"torch.compile: of the whole chunk, mode {self.mode}"
        rest = "matrix products: in the precision of this process, LeRobot lowers it to 'high' when it compiles"
        return (own, rest, *super().not_equal)


PEERS: dict[str, type[LeRobot]] = {kind.name: kind for kind in (LeRobot, LeRobotCompiled)}


def check_name(spelled: str) -> tuple[str, str]:
    """Name and mode of a peer: "lerobot-compiled:default" is one with a mode of torch.compile. Raises ValueError."""
    name, _, mode = spelled.partition(":")
    if name not in PEERS:
        raise ValueError(f"there is no peer {name!r}{suggestion(name, list(PEERS))}: peers are {', '.join(PEERS)}")
    if mode and (name != LeRobotCompiled.name or mode not in MODES):
        raise ValueError(f"{spelled!r}: only {LeRobotCompiled.name} has a mode, one of {', '.join(MODES)}")
    return name, mode


def build(spelled: str, model: Family, steps: int | None, seed: int) -> LeRobot:
    """The peer of this name for a model. Raises ValueError where LeRobot cannot be what the model is."""
    name, mode = check_name(spelled)
    return LeRobotCompiled(model, steps, seed, mode) if mode else PEERS[name](model, steps, seed)


class PeerLane(Lane):
    """A peer under test, and the comparison without which it is not timed."""

    inner: LeRobot
    outer: LeRobot

    def __init__(
        self,
        name: str,
        peer: LeRobot,
        feed: Feed,
        views: int,
        conditions: dict[str, Any],
        seed: int,
        beside: str | None = None,
    ):
        told = {**conditions, "dtype": dtypes(peer.hosted.policy)}
        super().__init__(name, peer, feed, views, told, seed)
        self.beside = beside
        self.checked, self.check_s = timed(lambda: self._compared(seed), self.device)  # where anything is compiled

    def face(self, place: int) -> None:
        super().face(place)
        self.inputs = self.inner.inputs(self.batch)  # LeRobot's form of a prepared observation is not timed

    def answer(self, noise_BHA: Tensor, mark: Callable[[str], Any]) -> None:
        self.inner.play(self.inputs, noise_BHA)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **self.checked}

    @property
    def resized(self) -> bool:
        """Whether pictures are made to fit, which LeRobot does without rounding and not every policy does."""
        return bool(self.conditions["image"] != self.runtime.model.example(1).images_BVCYX.shape[-1])

    @torch.no_grad()
    def _compared(self, seed: int) -> dict[str, Any]:
        """How its actions differ from eager's at both boundaries. Raises ValueError where they do."""
        peer, eager = self.inner, Eager(self.runtime.model, self.runtime.steps, seed)
        steps = self.runtime.steps or self.runtime.spec.steps
        if peer.hosted.steps() != steps:
            raise ValueError(
                f"{self.name} would take {peer.hosted.steps()} denoise steps, the policy takes {steps}: such times "
                "cannot be compared"
            )
        noise_BHA = self._noise(eager)
        eager.reset(seed)
        ours = eager.chunk(self.batch, noise_BHA)[..., : self.runtime.spec.action_dim]
        error, cosine = self._agreed(peer.play(self.inputs, noise_BHA), ours, "for the same prepared observation")
        whole = torch.from_numpy(eager.infer(self.observation))
        self.outer.reset(seed)
        theirs = torch.from_numpy(self.outer.infer(self.observation))
        end, _ = self._agreed(theirs, whole, "from pictures to actions", judged=not self.resized)
        for session in (self.inner, self.outer):
            session.reset(seed)
        peer.attached()
        return {"error": error, "cosine": cosine, "end_to_end_error": end}

    def _agreed(self, theirs: Tensor, ours: Tensor, where: str, judged: bool = True) -> tuple[float, float]:
        """Largest difference and cosine of two chunks, which must be the same but for rounding."""
        if theirs.shape != ours.shape:
            raise ValueError(f"{self.name} gives actions {tuple(theirs.shape)}, the policy {tuple(ours.shape)}")
        a, b = theirs.double(), ours.double()
        error, largest = float((a - b).abs().max()), float(b.abs().max())
        cosine = float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
        half = self.dtype == torch.bfloat16
        if judged and not (cosine >= LEAST_COSINE if half else error <= LIMIT * largest):
            raise ValueError(
                f"{self.name} gives other actions than eager {where} (largest difference {error:.3g} of {largest:.3g}, "
                f"cosine {cosine:.6f}): it is another policy, and is not timed"
            )
        return error, cosine

    def told(self) -> dict[str, Any]:
        """For its row: what it has in common with the policy that it stands beside, and what it has not."""
        model, peer = self.runtime.model, self.inner
        mine = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
        shared = all(tensor.untyped_storage().data_ptr() in mine for tensor in peer.hosted.policy.parameters())
        equal = [
            "weights: the policy's own tensors" if shared else "weights: the policy's, in LeRobot's types",
            "observations, noise, cameras, words, horizon and denoise steps",
            "end to end: uint8 pictures in host memory to actions in host memory",
        ]
        differs = [*peer.not_equal, "end to end: LeRobot's own preprocessing, pictures travel as float32"]
        if self.resized:
            differs.append("end to end: pictures are made to fit by LeRobot's code, so the actions may differ")
        return {"beside": self.beside, "equal": equal, "not_equal": differs}
