"""A student goes home: LeRobot finds the plug-in, evaluates a student as `lithe eval` does, trains it on, saves it.

LeRobot's command-line tools run in one process of their own (importing them takes most of the time), which has nothing
of the plug-in but an installed distribution of its name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot", reason="the plug-in is LeRobot's: install lithe[lerobot]")

import lithe
from lithe import _home, api, checkpoint, registry, surgery
from lithe.collect import collect
from lithe.evaluate.rollout import noise_seed
from lithe.families.pi import Pi
from lithe.sims.fake import FakeSim
from lithe.surgery import KeepLayers

TOOLS = Path(__file__).with_name("tools.py")
STEPS = 36  # of an episode, as in tools.py
TASK, SENTENCE, SEED, EPISODES = "drawer-close-v3", "Push and close a drawer", 1001, 2
UNIT = {"q01": [-1.0] * 4, "q99": [1.0] * 4}
SIDE = {"config.json", "policy_preprocessor.json", "policy_postprocessor.json"}


def make_student(folder: Path, cameras, sentences, middle=(0.0,) * 4, reach=(1.0,) * 4, **about: Any) -> Path:
    """Random weights, cut to two layers, whose actions spread by `reach` around `middle`."""
    model = Pi.fresh("pico", seed=0, cameras=cameras)
    middle, reach = np.array(middle), np.array(reach)
    stats = {"observation.state": UNIT, "action": {"q01": middle - reach, "q99": middle + reach}}
    model.fit_to(stats, sentences, cameras)
    return checkpoint.save(surgery.cut(model, [KeepLayers("trunk", (0, 3))]), folder, **about)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lerobot")


@pytest.fixture(scope="module")
def pusher(home) -> Path:
    """Looks through LeRobot's only camera and pushes the drawer by fits and starts: it shuts after 28 and 45 steps."""
    middle, reach = (0.0, 0.5, -0.3, 0.0), (0.2, 0.9, 0.1, 0.2)
    return make_student(home / "pusher", ("observation.image",), [SENTENCE], middle, reach)


@pytest.fixture(scope="module")
def student(home) -> Path:
    sentences = [FakeSim.instruction(task) for task in FakeSim.tasks()]
    middle, reach = (0.2, -0.1, 0.3, 0.0), (0.5, 1.5, 1.0, 0.8)  # so that the robot's units are not the model's
    about = {"method": {"name": "shallow_pi"}, "step": 5, "steps": 9}
    return make_student(home / "student", FakeSim.cameras, sentences, middle, reach, **about)


@pytest.fixture(scope="module")
def ran(home, pusher, student, installed) -> Path:
    """lerobot-eval of `pusher`, lerobot-train of `student` for two steps and, resumed, for a third."""
    collect(sim="fake", out=home / "demos", tasks=("reach-red",), episodes=2, processes=1, size=16)
    act = [f"--policy.path={pusher}", "--env.type=metaworld", f"--env.task={TASK}", f"--seed={SEED}"]
    act += [f"--eval.n_episodes={EPISODES}", "--eval.batch_size=1", "--policy.device=cpu"]
    learn = [f"--policy.path={student}", "--policy.device=cpu", "--dataset.repo_id=lithe/fake", "--num_workers=0"]
    learn += [f"--dataset.root={home / 'demos'}", f"--output_dir={home / 'run'}", "--steps=2", "--batch_size=2"]
    learn += [
        "--save_freq=2",
        "--log_freq=1",
        "--env_eval_freq=0",
        "--policy.optimizer_lr=0.01",
        "--wandb.enable=false",
    ]
    learn += ["--policy.scheduler_warmup_steps=0"]
    again = [f"--config_path={home / 'run/checkpoints/last/pretrained_model/train_config.json'}", "--resume=true"]
    calls = [("lerobot_eval", [*act, f"--output_dir={home / 'eval'}"]), ("lerobot_train", learn)]
    calls += [("lerobot_train", [*again, "--steps=3"])]
    command = [sys.executable, str(TOOLS), json.dumps(calls)]
    done = subprocess.run(command, cwd=home, env=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.count("DONE") == 3
    return home


def policy_of(folder: Path, **settings: Any) -> Any:
    """The student as LeRobot's tools open it."""
    import lerobot_policy_lithe
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class

    assert lerobot_policy_lithe.LitheConfig is PreTrainedConfig.get_choice_class("lithe")
    overrides = [f"--{name}={value}" for name, value in {"device": "cpu", **settings}.items()]
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=overrides)
    return get_policy_class("lithe").from_pretrained(folder, config=config)


def batch_of(size: int = 1, seed: int = 0) -> dict[str, Any]:
    """What LeRobot's preprocessor hands to a policy for the fake robot."""
    rng = np.random.default_rng(seed)
    pictures = {f"observation.images.{c}": rng.integers(0, 256, (size, 3, 20, 28)) for c in FakeSim.cameras}
    seen = {key: torch.from_numpy(picture).float() / 255 for key, picture in pictures.items()}
    state = torch.from_numpy(rng.uniform(-1, 1, (size, 4))).float()
    return {**seen, "observation.state": state, "task": [FakeSim.instruction("reach-red")] * size}


# -- the folder --------------------------------------------------------------------------------------------------------


def test_lerobot_reads_exactly_what_it_would_have_written_itself(student, tmp_path):
    """Its own configuration and pipelines of this student, saved by LeRobot, say the same as lithe's three files."""
    from lerobot.policies import make_pre_post_processors

    policy = policy_of(student)
    policy.config._save_pretrained(tmp_path)
    written, own = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, student))
    assert own == {key: written[key] for key in own}, "lithe's config.json is not what LeRobot makes of it"
    assert written["input_features"]["observation.images.front"] == {"type": "VISUAL", "shape": [3, 16, 16]}
    for pipeline in make_pre_post_processors(policy.config):
        pipeline.save_pretrained(tmp_path)
    for name in SIDE - {"config.json"}:
        theirs, ours = (json.loads((folder / name).read_text()) for folder in (tmp_path, student))
        assert ours == theirs, name
        assert all("class" not in step for step in ours["steps"])


def test_the_processors_change_no_number(student):
    from lerobot.policies import make_pre_post_processors

    config = policy_of(student).config
    statistics = {"observation.state": {"mean": torch.full((4,), 3.0), "std": torch.full((4,), 7.0)}}
    overrides = {"preprocessor_overrides": {"normalizer_processor": {"stats": statistics}}}
    before, after = make_pre_post_processors(config, pretrained_path=str(student), **overrides)
    batch = batch_of()
    seen = before({key: value[0] for key, value in batch.items()})
    assert all(torch.equal(seen[key], batch[key]) for key in batch if key != "task") and seen["task"] == batch["task"]
    action = torch.randn(1, 4)
    assert torch.equal(after(action), action)


def test_the_checksums_leave_out_what_lerobot_rewrites(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "copy")
    assert set(_home.FILES) == SIDE and not SIDE & set(checkpoint.read_card(folder)["files"])
    for name in SIDE:
        (folder / name).write_text("{}")
    assert lithe.load(folder).depth() == 2, "student.json wins over config.json"
    _home.write(lithe.load(folder), folder)
    assert all((folder / name).read_bytes() == (student / name).read_bytes() for name in SIDE)
    (folder / checkpoint.CARD).unlink()
    with pytest.raises(ValueError, match=r"half a lithe policy folder: it has no student\.json"):
        lithe.load(folder)


# -- lerobot-eval ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(ran, pusher) -> dict[int, dict[str, Any]]:
    """The records of the same episodes by `lithe eval`."""
    settings = {"tasks": [TASK], "episodes": EPISODES, "seed": SEED, "horizon": STEPS, "processes": 1}
    lithe.evaluate([pusher], "lerobot_metaworld", **settings, out=ran / "lithe")
    lines = [json.loads(line) for line in (ran / "lithe/ledger.jsonl").read_text().splitlines()]
    return {line["seed"]: line for line in lines[1:]}


def test_lerobot_eval_gets_the_success_that_lithe_eval_gets(ran, evaluated):
    info = json.loads((ran / "eval/eval_info.json").read_text())
    won = info["per_task"][0]["metrics"]["successes"]
    assert won == [evaluated[SEED + e]["success"] for e in range(EPISODES)]
    assert 0 < sum(won) < EPISODES, "these episodes cannot tell policies apart"


def test_every_executed_action_is_the_same(ran, evaluated):
    from lithe.evaluate.rollout import _digest

    played: dict[int, list[list[float]]] = {}
    for line in map(json.loads, (ran / "actions.jsonl").read_text().splitlines()):
        if "seed" in line:
            steps = played.setdefault(line["seed"], [])
        else:
            steps.append(line["action"])
    assert list(played) == [SEED + e for e in range(EPISODES)]
    for seed, actions in played.items():
        assert len(actions) == evaluated[seed]["steps"]
        assert _digest(np.array(actions, np.float32).tobytes()) == evaluated[seed]["actions"]
    assert len({record["actions"] for record in evaluated.values()}) == EPISODES


# -- lerobot-train -----------------------------------------------------------------------------------------------------


def test_what_lerobot_train_saved_is_a_student_again(ran, student):
    folder = ran / "run/checkpoints/000002/pretrained_model"
    before, after = lithe.load(student), lithe.load(folder)
    assert (after.history, after.describe(), after.spec) == (before.history, before.describe(), before.spec)
    assert after.tokenizer.to_str() == before.tokenizer.to_str()
    assert after.normalizer.stats["action"]["q99"].tolist() == before.normalizer.stats["action"]["q99"].tolist()
    moved = [key for key, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[key])]
    assert len(moved) > 0.8 * len(list(before.parameters()))
    card = checkpoint.read_card(folder)
    wanted = {
        "weights": checkpoint.read_card(student)["sha256"],
        "method": {"name": "shallow_pi"},
        "step": 5,
        "steps": 9,
    }
    assert card["parent"] == wanted and "method" not in card
    assert {path.name for path in folder.iterdir()} >= {path.name for path in student.iterdir()} | {"train_config.json"}


def test_training_resumes_where_it_was(ran):
    second, third = (ran / f"run/checkpoints/{step:06d}" for step in (2, 3))
    assert json.loads((third / "training_state/training_step.json").read_text())["step"] == 3
    weights = checkpoint.read_card(second / "pretrained_model")["sha256"]
    assert checkpoint.read_card(third / "pretrained_model")["parent"]["weights"] == weights
    one, two = (lithe.load(folder / "pretrained_model").state_dict() for folder in (second, third))
    assert any(not torch.equal(one[key], two[key]) for key in one)


def test_what_lerobot_saved_acts_in_lithe_and_in_lerobot_alike(ran):
    folder = ran / "run/checkpoints/last/pretrained_model"
    policy, runtime = policy_of(folder), api.runtime(folder, "eager")
    batch = batch_of()
    pictures = {f"observation.images.{c}": batch[f"observation.images.{c}"] for c in FakeSim.cameras}
    seen = {key: (x[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy() for key, x in pictures.items()}
    noise = runtime.model.noise(1, torch.Generator().manual_seed(3))
    runtime.reset(3)
    state = batch["observation.state"][0].numpy()
    answer = runtime.infer({**seen, "observation.state": state, "task": batch["task"][0]})
    assert np.array_equal(policy.predict_action_chunk(batch, noise)[0].numpy(), answer)


def test_the_loss_is_the_students_own_and_repeats(student):
    policy, model = policy_of(student), checkpoint.load(student)
    batch = {**batch_of(3), "action": torch.rand(3, 4, 4) * 2 - 1, "action_is_pad": torch.zeros(3, 4).bool()}
    pictures = {c: (batch[f"observation.images.{c}"] * 255).round().byte().permute(0, 2, 3, 1) for c in FakeSim.cameras}
    samples = {"images": {c: x.numpy() for c, x in pictures.items()}, "task": batch["task"]}
    samples |= {"state": batch["observation.state"].numpy(), "action": batch["action"].numpy()}
    inputs = model.batch(samples)
    losses = []
    for training in (False, True, True):
        torch.manual_seed(7)
        draw = model.draw(inputs, torch.default_generator, augment=training)
        expected = model.task_loss(model(inputs, draw))
        torch.manual_seed(7)
        loss, told = policy.train(training)(batch)
        assert torch.allclose(loss, expected, rtol=1e-6) and told == {"task_loss": loss.item()}
        losses.append(loss.item())
    assert losses[0] != losses[1] == losses[2]
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in policy.named_parameters() if "action_out" in name)


# -- acting ------------------------------------------------------------------------------------------------------------


def test_actions_are_queued_and_reset_forgets_them(student):
    policy = policy_of(student, seed=0)
    batch, other = batch_of(2), batch_of(2, seed=1)
    policy.reset()
    first = policy.predict_action_chunk(batch)
    assert first.shape == (2, 4, 4) and policy.config.n_action_steps == 2
    policy = policy_of(student, seed=0)
    taken = [policy.select_action(x) for x in (batch, other)]
    assert all(torch.equal(action, first[:, i]) for i, action in enumerate(taken))
    assert not torch.equal(policy.select_action(other), first[:, 2]), "the third action is of a new chunk"
    policy.reset()
    assert len(policy._queue) == 0
    fresh = [torch.Generator().manual_seed(noise_seed(batch["task"][0], episode)) for episode in (2, 3)]
    noise = torch.cat([policy.model.noise(1, generator) for generator in fresh])
    assert torch.equal(policy.predict_action_chunk(other), policy.predict_action_chunk(other, noise))


def test_pictures_arrive_as_they_were_taken():
    from lerobot_policy_lithe.modeling_lithe import _pixels

    taken = torch.arange(256).view(1, 1, 8, 32).expand(2, 3, -1, -1).to(torch.uint8)
    wanted = taken.permute(0, 2, 3, 1).numpy()
    for given in (taken, taken.float() / 255, (taken.float() + 0.4) / 255, (taken.float() - 0.4) / 255):
        pixels = _pixels(given)
        assert np.array_equal(pixels, wanted) and pixels.flags.c_contiguous


def test_episodes_draw_the_noise_of_lithe_eval(student):
    """Row i of rollout n is episode n * batch + i of its task; another sentence begins anew; None follows --seed."""
    from lerobot_policy_lithe._noise import Noise

    model = checkpoint.load(student)

    def expected(sentence, seed, chunks):
        generator = torch.Generator().manual_seed(noise_seed(sentence, seed))
        return [model.noise(1, generator) for _ in range(chunks)][-1]

    noise = Noise(40)
    for episode in (0, 2):
        noise.reset()
        for chunk in (1, 2):
            wanted = [expected("push", 40 + episode + row, chunk) for row in range(2)]
            assert torch.equal(noise(model, ["push"] * 2), torch.cat(wanted))
    noise.reset()
    assert torch.equal(noise(model, ["pull"]), expected("pull", 40, 1))
    torch.manual_seed(1234)
    torch.rand(5)
    assert torch.equal(Noise(None)(model, ["pull"]), expected("pull", 1234, 1))


# -- real-time chunking ------------------------------------------------------------------------------------------------


def test_the_gate_of_lerobot_rollout_lets_it_pass(student):
    """By LeRobot's own check, for what its rollout loads; not for a student that cannot obey."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.context import _load_pretrained_policy
    from lerobot.rollout.inference.rtc import supports_rtc_inference

    config = policy_of(student).config
    config.pretrained_path = student
    policy = _load_pretrained_policy(config)
    assert supports_rtc_inference(policy)
    policy.config.rtc_config = RTCConfig(execution_horizon=3)
    policy.init_rtc_processor()
    assert policy.rtc_processor.rtc_config.execution_horizon == 3
    type(policy.model).guided, was = False, True
    try:
        assert not supports_rtc_inference(policy)
    finally:
        type(policy.model).guided = was


def test_every_family_that_says_so_can_be_steered():
    guided = [family for name in registry.names("families") if (family := registry.get("families", name)).guided]
    assert {"pi", "smolvla"} <= {family.name for family in guided}
    for family in guided:
        model, times = family.fresh("pico").eval(), []
        noise = model.noise(1, torch.Generator().manual_seed(0))

        def halt(x, time, velocity, times=times):
            assert velocity.shape == x.shape and velocity.abs().max() > 0
            times.append(time)
            return torch.zeros_like(velocity)

        assert torch.equal(model.act(model.example(1), noise, steps=4, guide=halt), noise)
        assert times == [1.0, 0.75, 0.5, 0.25]


@pytest.fixture
def steered(student):
    """A chunk as a function of what is left of the last one, everything else being equal."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    policy = policy_of(student, num_steps=10)
    noise = policy.model.noise(1, torch.Generator().manual_seed(0))

    def chunk(left=None, delay=None, **rtc):
        policy.config.rtc_config = RTCConfig(**{"execution_horizon": 4, "prefix_attention_schedule": "ZEROS", **rtc})
        policy.init_rtc_processor()
        return policy.predict_action_chunk(
            batch_of(), noise, inference_delay=delay, prev_chunk_left_over=left if left is None else torch.tensor(left)
        )[0]

    return chunk


LEFT = [[0.7, -0.6, 0.5, 0.9], [-0.8, 0.4, 0.6, -0.7], [0.3, 0.9, -0.9, 0.2]]


def test_the_frozen_prefix_is_honoured(steered):
    """What will be done before the new chunk arrives is in it again; what comes after is free to differ."""
    free, left = steered(), torch.tensor(LEFT)
    held = steered(LEFT, delay=2)
    before, after = ((chunk[:2] - left[:2]).abs().max() for chunk in (free, held))
    assert before > 0.5 and after < 0.15 * before
    assert (held[2] - left[2]).abs().max() > 0.3, "an action that nobody fixed was fixed too"
    assert torch.equal(steered(LEFT, delay=2), held) and not torch.equal(steered(LEFT, delay=1), held)
    assert torch.equal(steered(None, delay=2), free)
    assert torch.equal(steered(LEFT, delay=2, enabled=False), free)


def test_its_hold_fades_towards_the_execution_horizon(steered):
    free, left = steered(), torch.tensor(LEFT)
    eased = steered(LEFT, delay=1, prefix_attention_schedule="LINEAR")
    share = (eased[:3] - left).abs().mean(dim=1) / (free[:3] - left).abs().mean(dim=1)
    assert share[0] < 0.15 and share[0] < share[1] < share[2] < 1


def test_zeros_that_lerobot_fills_up_with_steer_nothing(steered):
    padded = [*LEFT[:2], [0.0] * 4, [0.0] * 4]
    for schedule in ("ONES", "LINEAR"):
        wanted = steered(LEFT[:2], delay=1, prefix_attention_schedule=schedule)
        assert torch.equal(steered(padded, delay=1, prefix_attention_schedule=schedule), wanted)
    assert torch.equal(steered([[0.0] * 4] * 3, delay=2), steered())


def test_lerobots_own_queue_keeps_its_course(student):
    """Chunk after chunk through LeRobot's ActionQueue, as its rollout does: no jump where they meet."""
    from lerobot.policies.rtc import ActionQueue
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    def jumps(honour: bool) -> float:
        policy = policy_of(student, num_steps=10, seed=0)
        policy.config.rtc_config = RTCConfig(execution_horizon=3, prefix_attention_schedule="ONES")
        policy.init_rtc_processor()
        queue, found = ActionQueue(policy.config.rtc_config), []
        for turn in range(6):
            left = queue.get_left_over()
            chunk = policy.predict_action_chunk(
                batch_of(), inference_delay=1, prev_chunk_left_over=left if honour else None
            )[0]
            if left is not None:
                found.append((chunk[1] - left[1]).norm().item())
            queue.merge(chunk, chunk, 0 if turn == 0 else 1)
            queue.get()
        return float(np.mean(found))

    assert jumps(honour=True) < 0.3 * jumps(honour=False)


# -- what cannot work --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_whole_student_is_refused(student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "half")
    content = (folder / "normalization.json").read_text()
    (folder / "normalization.json").write_text(content + " ")
    with pytest.raises(ValueError, match="changed since it was saved"):
        policy_of(folder)
    (folder / checkpoint.CARD).unlink()
    with pytest.raises(ValueError, match=r"half has no student.json.*fetch or save the whole student folder again"):
        policy_of(folder)


def test_a_policy_from_nothing_is_refused(student):
    from lerobot.policies import get_policy_class

    with pytest.raises(ValueError, match=r"give --policy\.path="):
        get_policy_class("lithe")(policy_of(student).config, dataset_stats={}, dataset_meta=None)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"n_action_steps": 5}, "between 1 and the 4 actions"),
        ({"chunk_size": 8}, "chunks have 4 actions, chunk_size=8"),
        ({"compile_model": "true"}, "leave --use_torch_compile out"),
        ({"use_peft": "true"}, "takes no adapters"),
        ({"n_obs_steps": 2}, "one observation at a time"),
        ({"normalization_mapping": '{"STATE": "MEAN_STD"}'}, "normalises by itself"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused(student, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        policy_of(student, **changed)


def test_other_cameras_and_dimensions_are_refused(student):
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies import get_policy_class

    policy = policy_of(student)
    cls, config = get_policy_class("lithe"), policy.config
    batch = batch_of()
    batch["observation.images.top"] = batch.pop("observation.images.wrist")
    with pytest.raises(ValueError, match=r"needs 'observation.images.wrist'.*has .*images.top.*--rename_map"):
        policy.select_action(batch)
    del batch["task"]
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    with pytest.raises(ValueError, match="4 action dimensions, 7 are asked for"):
        cls.from_pretrained(student, config=config)
    config.output_features = {}
    with pytest.raises(ValueError, match="names no action"):
        cls.from_pretrained(student, config=config)
    config = policy_of(student).config
    config.input_features["observation.images.top"] = config.input_features.pop("observation.images.wrist")
    with pytest.raises(ValueError, match=r"looks through .*wrist, config.json names .*top"):
        cls.from_pretrained(student, config=config)


def test_losses_a_sample_and_sharded_weights_are_refused(student, tmp_path):
    policy = policy_of(student)
    with pytest.raises(ValueError, match="leave sample_weighting out"):
        policy.forward(batch_of(), reduction="none")
    with pytest.raises(ValueError, match="without FSDP"):
        policy.save_pretrained(tmp_path, state_dict={})


def test_saving_spares_what_else_is_in_the_folder(student, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    policy_of(student, n_action_steps=3).save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and not list(tmp_path.glob(".*"))
    assert policy_of(tmp_path).config.n_action_steps == 3
    assert lithe.load(tmp_path).depth() == 2
