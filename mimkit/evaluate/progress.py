"""How far a long piece of work has come: a bar on a terminal, plain lines now and then elsewhere; on stderr."""

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_EVERY = 10.0  # seconds between lines where stderr is no terminal


class Progress:
    """Counts up to `total`. Use as a context."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self.spoke = time.perf_counter()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.done = min(self.total, self.done + count)
        now = time.perf_counter()
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        elif now - self.spoke >= PLAIN_EVERY:
            self.spoke = now
            print(f"{self.what}: {self.done} of {self.total}", file=sys.stderr, flush=True)
