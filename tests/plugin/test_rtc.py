"""lithe's arithmetic of real-time chunking is that of LeRobot's RTCProcessor, for every schedule and strength."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("schedule", ["ZEROS", "ONES", "LINEAR", "EXP"])
@pytest.mark.parametrize(("left", "delay", "horizon"), [(8, 2, 6), (5, 0, 6), (5, 4, 3), (3, 5, None)])
def test_it_steers_as_lerobot_does(schedule, left, delay, horizon):
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.policies.rtc.modeling_rtc import RTCProcessor
    from lerobot_policy_lithe import _rtc

    named = RTCAttentionSchedule(schedule)
    config = RTCConfig(prefix_attention_schedule=named, max_guidance_weight=5.0, execution_horizon=4, debug=True)
    theirs, ours = RTCProcessor(config), RTCProcessor(config)
    generator = torch.Generator().manual_seed(0)
    x, velocity = (torch.randn(2, 8, 4, generator=generator) for _ in range(2))
    rest = torch.randn(2, left, 4, generator=generator)
    follow = _rtc.guide(ours, rest, delay, horizon)
    for time in (1.0, 0.8, 0.2, 0.1):
        wanted = theirs.denoise_step(x, rest, delay, time, lambda _: velocity, horizon)
        assert torch.allclose(follow(x, time, velocity), wanted, atol=1e-5)
        steers = delay > 0 or schedule != "ZEROS"
        assert torch.allclose(wanted, velocity, atol=1e-3) != steers
    last, own = (processor.get_all_debug_steps()[-1] for processor in (theirs, ours))
    assert torch.allclose(last.correction, own.correction, atol=1e-5)
    assert torch.allclose(last.weights.flatten(), own.weights.flatten())
    assert last.inference_delay == own.inference_delay and last.execution_horizon == own.execution_horizon
