"""How far a long piece of work has come: a line that moves on a terminal, plain lines now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, TextIO, TypeVar

PLAIN_EVERY = 10.0  # seconds between lines where the stream is no terminal
Of = TypeVar("Of", bound="Progress")


class Progress:
    """Counts up to `total`. Use as a context.

    what: is counted. done: how many are done already. stream: where it is said; stderr where None.
    stays: whether the last line stays on a terminal.
    """

    def __init__(self, what: str, total: int, done: int = 0, stream: TextIO | None = None, stays: bool = False):
        self.what, self.total, self.done = what, total, done
        self.stream = stream or sys.stderr
        self.spoke = time.perf_counter()
        self.bar: Any = None
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}", markup=False), BarColumn(None), TimeElapsedColumn()
            self.bar = Bar(*columns, console=Console(file=self.stream), expand=True, transient=not stays)
            self.task = self.bar.add_task(what, total=total, completed=done)

    def __enter__(self: Of) -> Of:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int) -> None:
        """So many more are done."""
        done = min(self.total, self.done + count)
        self.show(done, f"{self.what}: {done} of {self.total}")

    def show(self, done: int, line: str, must: bool = False) -> None:
        """So many are done; `line` says more. must: say it now also where lines are few."""
        self.done = done
        if self.bar:
            self.bar.update(self.task, completed=done, description=line)
        elif must or time.perf_counter() - self.spoke >= PLAIN_EVERY:
            self.spoke = time.perf_counter()
            print(line, file=self.stream, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)
