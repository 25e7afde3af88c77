"""One piece of work: a `mimkit` command in a process of its own, so that whatever becomes of it is a line in the table."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mimkit.signals import StopRequest

LOOK = 0.1  # seconds between looks at whether a stop is asked for
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class Stopped(BaseException):
    """A signal asked for it; what was under way has saved, or is done again. No failure of a piece of work."""


class Failed(Exception):
    """A piece of work did not succeed. The text is one line that says why."""


class Worker:
    """Runs commands one after another.

    common: further words of each command. lock: file descriptor that lives as long as any process of the bench.
    stop: says when to pass a stop on to the process at work.
    """

    def __init__(self, common: Sequence[str], lock: int, stop: StopRequest):
        self.common, self.lock, self.stop = common, lock, stop

    def run(self, words: Sequence[str | Path], log: Path) -> None:
        """Run `mimkit …` to its end; what it prints is appended to `log`. Raises Failed and Stopped."""
        if self.stop:
            raise Stopped
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "mimkit", *map(str, words), *self.common],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[self.lock],
                start_new_session=True,  # Ctrl-C reaches the bench alone, which passes it on once
                preexec_fn=_end_with_the_bench,
            )
            code = self._wait(process)
        if code and self.stop:
            raise Stopped
        if code:
            raise Failed(_reason(code, log))

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        told = False
        while True:
            try:
                return process.wait(LOOK)
            except subprocess.TimeoutExpired:
                if self.stop and not told:
                    told = True
                    process.terminate()


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, which other benches there wait for, and so does one that was started again after a kill
    for what the killed one had at work. Gives its file descriptor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the bench that is at work in {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _end_with_the_bench() -> None:
    """Let the system end this process when the bench is killed; elsewhere than on Linux it works on to its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _reason(code: int, log: Path) -> str:
    """Why a process ended with that code: the signal that ended it, or its last words."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with exit code {code}"
