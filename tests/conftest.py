"""What every test runs under: offline, one torch thread a worker, MuJoCo rendered without a display.

The environment is set before anything imports torch or MuJoCo, and child processes inherit it. Fixtures that belong to
one folder live in that folder's own conftest.py; those here are for several.
"""

import json
import os
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

# Debian's newest releases drop OSMesa; EGL renders at the same speed on a CPU.
os.environ.setdefault("MUJOCO_GL", "osmesa" if find_library("OSMesa") else "egl")
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny models are slower with more, and two workers would fight over two cores
    "MKL_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "COLUMNS": "200",  # help and error texts are compared unwrapped
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def foreign():
    """Writes policies as other projects would: `foreign.lerobot(model, folder)`, `foreign.openpi(model, folder)`."""
    return Foreign()


class Foreign:
    """Folders of other projects with a model's weights, written by hand. Parity tests have LeRobot's own."""

    tokenizer = "lab/words"  # named by LeRobot folders, which hold it themselves

    def lerobot(self, model: Any, folder: Path, stats: Any = None, weights: bool = True, places: int = 0) -> Path:
        """A LeRobot folder. places: rows of SmolVLA's position table, where not those of the model's own."""
        from lithe.families._lerobot import AFTER, BEFORE, PROMPTS

        c, kind = model.config, "smolvla" if model.name == "smolvla" else model.config.variant
        inputs = {f"observation.images.{camera}": {"type": "VISUAL", "shape": [3, 16, 16]} for camera in c.cameras}
        inputs["observation.state"] = {"type": "STATE", "shape": [c.state_dim]}
        output = {"action": {"type": "ACTION", "shape": [c.action_dim]}}
        config = {"type": kind, "input_features": inputs, "output_features": output, "chunk_size": c.horizon}
        config |= {"n_action_steps": c.replan, "max_state_dim": c.width_state, "max_action_dim": c.width_action}
        config |= {"num_inference_steps": c.steps, "num_steps": c.steps, "tokenizer_max_length": c.text}
        config |= {"image_resolution": [c.vision.image] * 2, "resize_imgs_with_padding": [c.vision.image] * 2}
        folder.mkdir(parents=True)
        if kind == "smolvla":
            config["vlm_model_name"] = str(self._vlm(model, folder / "vlm"))
        mode = "QUANTILES" if kind == "pi05" else "MEAN_STD"
        how = {"eps": 1e-8, "norm_map": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}}
        words = {"max_length": c.text, "task_key": "task", "padding_side": "right", "tokenizer_name": self.tokenizer}
        before = [
            ("normalizer_processor", {**how, "features": {**inputs, **output}}, "before.safetensors"),
            (PROMPTS[kind], {}, None),
            ("tokenizer_processor", words, None),
        ]
        after = [("unnormalizer_processor", {**how, "features": output}, "after.safetensors")]
        for name, steps in ((BEFORE, before), (AFTER, after)):
            steps = [{"registry_name": n, "config": s, **({"state_file": f} if f else {})} for n, s, f in steps]
            (folder / name).write_text(json.dumps({"name": name, "steps": steps}))
        (folder / "config.json").write_text(json.dumps(config))
        self._beside(model, folder, stats)
        if weights:
            self._weights(model, folder, "model." if kind != "smolvla" else "", places)
        return folder

    def openpi(self, model: Any, folder: Path, stats: Any = None) -> Path:
        """An openpi checkpoint; the model's pictures must be as large as openpi's."""
        (folder / "assets/lab/robot").mkdir(parents=True)
        stats = {key.rpartition(".")[2]: x for key, x in self.stats(model, stats).items()}
        stats["actions"] = stats.pop("action")
        (folder / "assets/lab/robot/norm_stats.json").write_text(json.dumps({"norm_stats": stats}))
        (folder / "config.json").write_text(json.dumps({"action_horizon": model.config.horizon}))
        make_tokenizer().save(str(folder / "tokenizer.json"))
        self._weights(model, folder, "", 0)
        return folder

    def stored(self, model: Any, prefix: str = "model.") -> dict[str, str]:
        """For each of the model's tensors, the key it is stored under."""
        if model.name != "smolvla":
            from lithe.families import _pi_names

            return {name: prefix + _pi_names.stored(name, model.config.variant) for name in model.state_dict()}
        from lithe.families import _smolvla_names as names

        whole, inside = ({ours: theirs for theirs, ours in table.items()} for table in (names.WHOLE, names.IN_LAYER))
        tower = next(name.removesuffix(names.PATCHES) for name in model.state_dict() if name.endswith(names.PATCHES))
        found = {}
        for name in model.state_dict():
            module, _, kind = name.rpartition(".")
            if module in whole:
                found[name] = f"{whole[module]}.{kind}"
            elif name.startswith(tower):
                found[name] = names.SEEING + name.removeprefix(tower)
            else:
                stack, _, number, inner = module.split(".", 3)
                home = names.TEXT if stack == "trunk" else names.EXPERT
                found[name] = f"{home}layers.{number}.{inside[inner]}.{kind}"
        return found

    def stats(self, model: Any, stats: Any = None) -> dict[str, dict[str, list[float]]]:
        """Statistics of all kinds, the given ones on top."""
        sizes = {"observation.state": model.config.state_dim, "action": model.config.action_dim}
        spread = {"q01": -1.0, "q99": 1.0, "mean": 0.0, "std": 0.5}
        return {f: {**{k: [x] * n for k, x in spread.items()}, **(stats or {}).get(f, {})} for f, n in sizes.items()}

    def _vlm(self, model: Any, folder: Path) -> Path:
        folder.mkdir()
        trunk, vision = model.config.trunk, model.config.vision
        text = {"hidden_size": trunk.width, "head_dim": trunk.head_dim, "rms_norm_eps": model.config.eps}
        config = {"text_config": text, "vision_config": {"num_attention_heads": vision.heads}}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def _beside(self, model: Any, folder: Path, stats: Any) -> None:
        import torch
        from safetensors.torch import save_file

        stats = self.stats(model, stats)
        tensors = {f"{f}.{k}": torch.tensor(x, dtype=torch.float32) for f, own in stats.items() for k, x in own.items()}
        for name in ("before", "after"):
            save_file(tensors, folder / f"{name}.safetensors")
        make_tokenizer().save(str(folder / "tokenizer.json"))

    def _weights(self, model: Any, folder: Path, prefix: str, places: int) -> None:
        import torch
        from safetensors.torch import save_file

        from lithe.families import _pi_names, _smolvla_names

        names, own = self.stored(model, prefix), model.state_dict()
        tensors = {names[name]: tensor.contiguous() for name, tensor in own.items()}
        if model.name == "smolvla":  # an output layer that is stored and never computed
            tensors[_smolvla_names.HEAD] = own["embed.weight"].clone()
            table = next(key for key in tensors if key.endswith(_smolvla_names.PLACES))
            if places:
                random = torch.randn(places, tensors[table].shape[1], generator=torch.Generator().manual_seed(3))
                tensors[table] = random.to(tensors[table].dtype)
        else:
            tensors[prefix + _pi_names.IDLE[0]] = torch.zeros(5, 3)
        save_file(tensors, folder / "model.safetensors")


def make_tokenizer() -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made
