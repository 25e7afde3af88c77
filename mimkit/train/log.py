"""What a run says while it trains: metrics.jsonl, a progress line on a terminal, plain lines elsewhere."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from mimkit.disk import write_text
from mimkit.progress import Progress
from mimkit.train.run import read_metrics


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


class TrainProgress(Progress):
    """The line that moves, on stdout. Use as a context."""

    def __init__(self, total_steps: int, steps_per_epoch: int, batch_size: int, step: int):
        super().__init__("starting", total_steps, done=step, stream=sys.stdout, stays=True)
        self.per_epoch, self.batch_size = steps_per_epoch, batch_size

    def update(self, step: int, loss: float, rates: dict[str, float]) -> None:
        """Show where the run is."""
        line = (
            f"step {step}/{self.total}  epoch {step / self.per_epoch:.2f}  loss {loss:.4f}  "
            f"{rates['images_per_s']:.0f} images/s  data-wait {100 * rates['data_wait']:.1f} %  ETA {self._eta(step, rates)}"
        )
        self.show(step, line, must=step == self.total)

    def _eta(self, step: int, rates: dict[str, float]) -> str:
        """Time of training that is left at the present rate."""
        left = (self.total - step) * self.batch_size / max(rates["images_per_s"], 1e-9)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
