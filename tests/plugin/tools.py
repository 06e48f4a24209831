"""Runs LeRobot's own command-line tools one after the other in this process, as their console scripts do.

argv: a JSON list of [module, arguments]. The Meta-World environment writes every reset and action it gets to
actions.jsonl in the working directory, and ends an episode after STEPS steps, so that failures do not take minutes.
"""

import importlib
import json
import sys

STEPS = 36


def watch_metaworld() -> None:
    from lerobot.envs.metaworld import MetaworldEnv

    begin, reset, step = MetaworldEnv.__init__, MetaworldEnv.reset, MetaworldEnv.step

    def write(line):
        with open("actions.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def shorter(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self._max_episode_steps = STEPS

    def told(self, seed=None, **kwargs):
        if seed is not None:
            write({"seed": seed})
        return reset(self, seed=seed, **kwargs)

    def acted(self, action):
        assert action.dtype == "float32"
        write({"action": action.tolist()})
        return step(self, action)

    MetaworldEnv.__init__, MetaworldEnv.reset, MetaworldEnv.step = shorter, told, acted


if __name__ == "__main__":
    for name, arguments in json.loads(sys.argv[1]):
        module = importlib.import_module(f"lerobot.scripts.{name}")
        if name == "lerobot_eval":
            watch_metaworld()
        sys.argv = [name, *arguments]
        module.main()
        print("DONE", name, flush=True)
