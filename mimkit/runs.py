"""The folders `runs/<method>-<n>` that training makes where no other is named."""

import json
from pathlib import Path

ROOT = Path("runs")


def numbers(method: str) -> list[int]:
    """The numbers that are taken, ascending."""
    return sorted(int(n) for path in ROOT.glob(f"{method}-*") if (n := path.name.rpartition("-")[2]).isdigit())


def folder(method: str, number: int) -> Path:
    """The folder of that number."""
    return ROOT / f"{method}-{number}"


def newest_finished(method: str) -> Path | None:
    """The folder of the highest number whose run was trained to its end."""
    return next((found for n in reversed(numbers(method)) if is_finished(found := folder(method, n))), None)


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end."""
    summary = run / "summary.json"
    return summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["exit"] == "done"
