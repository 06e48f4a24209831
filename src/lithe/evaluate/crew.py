"""Worker processes that play jobs. One that dies or hangs is replaced and its job given out again, so none is lost.

A job is handed to one worker at a time and answered once: whatever happens to workers, the caller gets exactly one
record for every job. Messages are JSON over a pipe. Workers are spawned, never forked (OpenGL and torch do not survive
a fork), ignore Ctrl-C (the caller ends them) and end by themselves when the caller is gone. Nothing here knows about
policies, simulators or ledgers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread, Timer
from typing import Any, TypeVar

Job = TypeVar("Job", bound=tuple)
Play = Callable[..., dict[str, Any]]  # a job's fields -> its record
RETRIES = 3  # how often one job may lose its worker and be given out again
STARTUP_S = 1800.0  # importing, building the simulator, loading the policies


def played(
    opener: Callable[[Any], Play], setup: Any, jobs: Sequence[Job], processes: int, timeout: float
) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """(job, record) for every job, in the order they finish. Close it (`closing`), or workers outlive an exception.

    `opener(setup)` runs once in each worker and returns what plays a job there; it must be importable, and a job's
    fields JSON-able. A ValueError in a worker ends everything with its own sentence; any other exception counts as the
    worker's death. timeout: seconds a job may take before its worker counts as hung.
    Raises ValueError when one job has lost its worker more than RETRIES times.
    """
    waiting, deaths = deque(range(len(jobs))), Counter[int]()
    crew: dict[Any, _Worker] = {}
    try:
        while waiting or crew:
            while waiting and len(crew) < processes:
                worker = _Worker(opener, setup, timeout, waiting.popleft())
                crew[worker.pipe] = worker
            for pipe in wait(list(crew)):
                worker = crew[pipe]
                message = worker.hear()
                if message is None:
                    del crew[pipe]
                    cause = worker.bury()
                    deaths[worker.job] += 1
                    if deaths[worker.job] > RETRIES:
                        raise ValueError(_hopeless(jobs[worker.job], deaths[worker.job], cause))
                    waiting.appendleft(worker.job)
                    continue
                if "refused" in message:
                    raise ValueError(message["refused"])
                if "record" in message:
                    yield jobs[worker.job], message["record"]
                    if not waiting:
                        del crew[pipe]
                        worker.dismiss()
                        continue
                    worker.job = waiting.popleft()
                worker.give(jobs[worker.job])
    finally:
        for worker in crew.values():
            worker.bury()


def _hopeless(job: Any, deaths: int, cause: str) -> str:
    return (
        f"{job}: its worker process was lost {deaths} times (last: {cause}); what it wrote is above. Finished episodes "
        "are kept: mend the cause and run the same command again"
    )


class _Worker:
    """One process and the job it has."""

    def __init__(self, opener: Callable[[Any], Play], setup: Any, timeout: float, job: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.job, self._timeout, self._overdue = job, timeout, False
        self._process = context.Process(target=_work, args=(theirs, opener, setup), daemon=True)
        # A worker inherits the block: Ctrl-C cannot end it while it still imports. The caller hears it right after.
        resource_tracker.ensure_running()  # starting it unblocks the signal, so that has to come first
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        theirs.close()  # or its end would never be noticed
        self._watch(STARTUP_S)

    def give(self, job: Any) -> None:
        """Hands over a job. A worker that has just died is noticed by the next `hear`."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send_bytes(json.dumps(job).encode())
        self._watch(self._timeout)

    def hear(self) -> dict[str, Any] | None:
        """Its next message; None when it has died."""
        try:
            message = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None
        self._timer.cancel()
        return message

    def dismiss(self) -> None:
        """Lets it end by itself, so that its simulator can clean up."""
        self.pipe.close()
        self._process.join(10)
        self.bury()

    def bury(self) -> str:
        """Ends it at once; returns what it died of."""
        self._timer.cancel()
        self._process.join(0.1)  # when it has just died, let its own exit code stand
        self._process.kill()
        self._process.join()
        self.pipe.close()
        if self._overdue:
            return "it hung and was ended"
        code = self._process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _watch(self, seconds: float) -> None:
        self._timer = Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self._overdue = True
        self._process.kill()


def _work(pipe: Connection, opener: Callable[[Any], Play], setup: Any) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_caller, daemon=True).start()
    os.dup2(2, 1)  # standard output belongs to the caller: its last line is the Result
    try:
        play = opener(setup)
        answer: dict[str, Any] = {"ready": True}
        while True:
            _tell(pipe, answer)
            try:
                job = json.loads(pipe.recv_bytes())
            except (EOFError, ConnectionResetError):  # no more jobs
                return
            answer = {"record": play(*job)}
    except ValueError as error:
        _tell(pipe, {"refused": str(error)})


def _end_with_caller() -> None:
    """Ends a worker whose caller was killed, in the middle of a job too: it would only take a core from others."""
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _tell(pipe: Connection, message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the caller is gone, and this process soon too
        pipe.send_bytes(json.dumps(message, allow_nan=False).encode())
