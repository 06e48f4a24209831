"""Real-time chunking (arXiv 2506.07339): what is left of the last chunk steers the next one while it is denoised.

LeRobot's settings say how strongly; the arithmetic is lithe's own (lithe/evaluate/chunking.py), and a test holds it to
that of LeRobot's RTCProcessor. It computes in model units and LeRobot keeps what is left in the units the policy
answered in, the robot's, so it goes through the student's own normalisation first. Shapes: T left-over actions,
H chunk, A action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from lithe.evaluate.chunking import Guide, weights


def left_over(chunk: Tensor | None, horizon: int) -> np.ndarray | None:
    """float32 [B, T, A] without the rows of zeros that LeRobot fills up with; None when nothing is left.

    Such a row would mean "go to zero" in the robot's units. A student never answers with exact zeros.
    """
    if chunk is None:
        return None
    left_BTA = chunk.detach().float().cpu().numpy()
    left_BTA = (left_BTA if left_BTA.ndim == 3 else left_BTA[None])[:, :horizon]
    said_T = np.flatnonzero(left_BTA.any(axis=(0, 2)))
    return left_BTA[:, : said_T[-1] + 1] if len(said_T) else None


def guide(processor: RTCProcessor, left_BTA: Tensor, delay: int, horizon: int | None) -> Any:
    """What `Family.act` asks at every denoise step. left_BTA: in model units; delay: actions as good as done."""
    settings = processor.rtc_config
    end = min(settings.execution_horizon if horizon is None else horizon, left_BTA.shape[1])
    schedule = RTCAttentionSchedule(settings.prefix_attention_schedule).value.lower()

    def follow(x_BHA: Tensor, time: float, velocity_BHA: Tensor) -> Tensor:
        pull = Guide(left_BTA, weights(delay, end, x_BHA.shape[1], schedule), settings.max_guidance_weight)
        if processor.is_debug_enabled():
            expected, error = x_BHA - time * velocity_BHA, pull.error(x_BHA, time, velocity_BHA)
            told = {"x_t": x_BHA, "v_t": velocity_BHA, "x1_t": expected, "correction": error, "err": error}
            told |= {"weights": pull.weight_H, "guidance_weight": pull.strength(time), "inference_delay": delay}
            processor.track(time, **told, execution_horizon=end)
        return pull(x_BHA, time, velocity_BHA)

    return follow
