"""What a run says while it trains: metrics.jsonl, a progress line on a terminal, plain lines elsewhere."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from mimkit.disk import write_text
from mimkit.train.run import read_metrics

PLAIN_EVERY = 10.0  # seconds between lines where the output is no terminal


class Metrics:
    """metrics.jsonl: one JSON object per line, in the order of the steps, also after a resume."""

    def __init__(self, folder: Path, step: int):
        """Keep what was written up to `step` steps; what a lost stretch had written is written again by its repetition."""
        self.path = folder / "metrics.jsonl"
        kept = [
            line for line in read_metrics(folder) if line["step"] < step or (line["step"] == step and "loss" in line)
        ]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class Clock:
    """Where the time between two log lines went: waiting for data, working, and what is not training (probes, …)."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.began, self.waited, self.paused, self.images = time.perf_counter(), 0.0, 0.0, 0

    def wait(self, seconds: float) -> None:
        """The loop waited so long for a batch."""
        self.waited += seconds

    def pause(self, seconds: float) -> None:
        """So long was not training."""
        self.paused += seconds

    def rates(self) -> dict[str, float]:
        """Images per second of training time, and the share of it spent waiting for data."""
        trained = max(1e-9, time.perf_counter() - self.began - self.paused)
        return {"images_per_s": round(self.images / trained, 2), "data_wait": round(self.waited / trained, 4)}


class Progress:
    """The line that moves. Use as a context."""

    def __init__(self, total_steps: int, steps_per_epoch: int, batch_size: int, step: int):
        self.total, self.per_epoch, self.batch_size = total_steps, steps_per_epoch, batch_size
        self.spoke = time.perf_counter()
        self.bar: Any = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(TextColumn("{task.description}"), BarColumn(None), TimeElapsedColumn(), expand=True)
            self.task = self.bar.add_task("starting", total=total_steps, completed=step)

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, step: int, loss: float, rates: dict[str, float]) -> None:
        """Show where the run is."""
        line = (
            f"step {step}/{self.total}  epoch {step / self.per_epoch:.2f}  loss {loss:.4f}  "
            f"{rates['images_per_s']:.0f} images/s  data-wait {100 * rates['data_wait']:.1f} %  ETA {self._eta(step, rates)}"
        )
        now = time.perf_counter()
        if self.bar:
            self.bar.update(self.task, completed=step, description=line)
        elif now - self.spoke >= PLAIN_EVERY or step == self.total:
            self.spoke = now
            print(line, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def _eta(self, step: int, rates: dict[str, float]) -> str:
        """Time of training that is left at the present rate."""
        left = (self.total - step) * self.batch_size / max(rates["images_per_s"], 1e-9)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
