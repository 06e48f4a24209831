"""The crew: one record for every job, whatever happens to the workers. Jobs here need neither torch nor a simulator."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

import pytest

from lithe.evaluate.crew import RETRIES, played

# Imported by name in the workers. A job (n, trouble) meets its trouble at the first attempt, or at every one.
PLAYER = '''
"""Jobs that get into trouble."""
import os, signal, time
from pathlib import Path

def opener(folder):
    print("a worker's chatter")
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder")

    def play(n, trouble=""):
        attempts = Path(folder) / f"{n}.attempts"
        with attempts.open("a") as file:
            file.write("x")
        Path(folder, f"{os.getpid()}.pid").touch()
        if attempts.stat().st_size == 1 or trouble.startswith("always"):
            match trouble.removeprefix("always "):
                case "killed": os.kill(os.getpid(), signal.SIGKILL)
                case "stopped": os.kill(os.getpid(), signal.SIGSTOP)
                case "asleep": time.sleep(600)
                case "aborted": os.abort()
                case "raised": raise RuntimeError("GL context lost")
                case "left": os._exit(0)
        if trouble == "refused":
            raise ValueError(f"{n} cannot be played")
        return {"n": n, "pid": os.getpid()}

    return play
'''


@pytest.fixture
def crew(tmp_path, monkeypatch):
    """Runs jobs and returns their records; no worker may outlive it."""
    (tmp_path / "troubled_jobs.py").write_text(PLAYER)
    monkeypatch.syspath_prepend(tmp_path)
    opener = importlib.import_module("troubled_jobs").opener

    def run(jobs, processes=2, timeout=60.0, folder=tmp_path):
        with closing(played(opener, str(folder), jobs, processes, timeout)) as records:
            return list(records)

    yield run
    sys.modules.pop("troubled_jobs")
    assert not multiprocessing.active_children()


def attempts(folder, n):
    return (folder / f"{n}.attempts").stat().st_size


def test_every_job_is_answered_once_though_workers_die(crew, tmp_path):
    troubles = ["", "killed", "", "aborted", "raised", "left", "", ""]
    records = crew(list(enumerate(troubles)))
    assert Counter(n for (n, _), _ in records) == Counter(range(8))
    assert all(record["n"] == n for (n, _), record in records)
    assert {n: attempts(tmp_path, n) for n in range(8)} == {
        n: 2 if trouble else 1 for n, trouble in enumerate(troubles)
    }


@pytest.mark.parametrize("trouble", ["asleep", "stopped"])
def test_a_hanging_worker_is_replaced(crew, tmp_path, trouble):
    records = crew([(0, ""), (1, trouble), (2, "")], processes=1, timeout=1.0)
    assert [n for (n, _), _ in records] == [0, 1, 2]
    assert [attempts(tmp_path, n) for n in range(3)] == [1, 2, 1]


def test_a_hopeless_job_ends_it_with_a_sentence(crew, tmp_path, capfd):
    with pytest.raises(
        ValueError, match=r"\(0, 'always raised'\): its worker process was lost 4 times \(last: exit code 1\)"
    ):
        crew([(0, "always raised"), (1, "")], processes=1)
    assert attempts(tmp_path, 0) == RETRIES + 1
    assert "GL context lost" in capfd.readouterr().err


def test_the_sentence_says_whether_it_hung_or_was_killed(crew):
    with pytest.raises(ValueError, match=r"lost 4 times \(last: it hung and was ended\)"):
        crew([(0, "always asleep")], timeout=0.2)
    with pytest.raises(ValueError, match=r"lost 4 times \(last: signal SIGKILL\)"):
        crew([(1, "always killed")])


def test_a_refusal_is_not_tried_again(crew, tmp_path):
    with pytest.raises(ValueError, match=r"^3 cannot be played$"):
        crew([(3, "refused"), *((n, "") for n in range(4, 9))])
    assert attempts(tmp_path, 3) == 1
    with pytest.raises(ValueError, match=r"is no folder$"):
        crew([(0, "")], folder=tmp_path / "nowhere")


def test_workers_are_kept_and_quiet(crew, capfd):
    records = crew([(n,) for n in range(6)], processes=2)
    assert len({record["pid"] for _, record in records}) <= 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "chatter" in err


def test_no_more_workers_than_jobs(crew, tmp_path):
    crew([(0, "")], processes=64)
    assert len(list(tmp_path.glob("*.pid"))) == 1
    assert crew([], processes=2) == []


CALLER = """
import signal, sys, troubled_jobs
from contextlib import closing
from lithe.evaluate.crew import played
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    jobs = [(0, ""), (1, ""), (2, "asleep")]
    with closing(played(troubled_jobs.opener, sys.argv[1], jobs, 2, 600.0)) as records:
        list(records)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_caller(crew, tmp_path, end):
    """Kill -9 of the caller alone, and Ctrl-C, which a terminal sends to the workers too."""
    (tmp_path / "caller.py").write_text(CALLER)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, str(tmp_path / "caller.py"), str(tmp_path)]
    with (tmp_path / "errors").open("w") as errors:
        caller = subprocess.Popen(command, stderr=errors, env=env, start_new_session=True)
    wait_until(lambda: (tmp_path / "2.attempts").exists())
    workers = [int(p.stem) for p in tmp_path.glob("*.pid")]
    if end == signal.SIGINT:
        os.killpg(caller.pid, end)
    else:
        caller.kill()
    caller.wait(20)
    wait_until(lambda: not any(alive(pid) for pid in workers))
    assert (tmp_path / "errors").read_text().count("KeyboardInterrupt") == (end == signal.SIGINT)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs; one that ended and was not waited for by its new parent counts as ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
