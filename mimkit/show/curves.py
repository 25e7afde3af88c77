"""How a run went: loss, learning rate and probe accuracy over its steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimkit.disk import read_json_lines
from mimkit.drawing.sheet import save
from mimkit.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH = 50  # the smoothed loss reaches this many-th part of the points to each side
SETTLED = 20  # after this many-th part of the run the loss must fit into the panel; the first drop may leave it
BLUE, ORANGE, GREY = "#2166ac", "#e08214", "0.45"


def draw_curves(metrics: Path, path: Path) -> None:
    """Write a PNG, 1200 pixels wide, from a run's metrics.jsonl; an unfinished last line is left out.

    Panels over the optimizer steps: the loss (each logged value thin, running mean thick; the steep beginning may leave
    the panel); the learning rate; where the run has a probe, its scores, with the untrained encoder's as a dashed line.
    Raises UserError where the file is missing or holds no loss.
    """
    from matplotlib.figure import Figure

    try:
        lines = read_json_lines(metrics)
    except OSError as error:
        raise UserError(f"{metrics} cannot be read: {error.strerror}") from error
    training = [line for line in lines if "loss" in line]
    probes = [line for line in lines if any(key.startswith(f"{line.get('probe')}_") for key in line)]
    if not training:
        raise UserError(f"{metrics} holds no loss yet: nothing to draw")
    heights = [4.0, 1.6, 3.0][: 3 if probes else 2]
    figure = Figure(figsize=(12, sum(heights) + 0.5), dpi=100, layout="constrained", facecolor="white")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    steps = np.array([line["step"] for line in training])
    last = training[-1]
    panels[0].set_title(f"step {last['step']}, epoch {last['epoch']:g}", loc="left", fontsize=13)
    _draw_loss(panels[0], steps, np.array([line["loss"] for line in training], dtype=float))
    _draw_rate(panels[1], steps, np.array([line["lr"] for line in training], dtype=float))
    if probes:
        _draw_probes(panels[2], probes)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("optimizer step", fontsize=11)
    save(figure, path)


def _draw_loss(panel: "Axes", steps: np.ndarray, loss: np.ndarray) -> None:
    panel.plot(steps, loss, color=BLUE, linewidth=0.7, alpha=0.45, label=f"as logged, first {loss[0]:.4g}")
    mean = running_mean(loss, len(loss) // SMOOTH)
    panel.plot(steps, mean, color=BLUE, linewidth=2, label=f"running mean, last {mean[-1]:.4g}")
    settled = loss[len(loss) // SETTLED :]
    settled = settled[np.isfinite(settled)]
    if len(settled) > 1 and np.ptp(settled) > 0:
        margin = 0.08 * np.ptp(settled)
        panel.set_ylim(settled.min() - margin, settled.max() + margin)
    panel.set_ylabel("loss", fontsize=11)
    panel.legend(frameon=False)


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """The mean of each value and of `reach` values on both sides.

    At the beginning of as many as there are, so that a steep one is followed; at the end of those that are there.
    """
    reaches = np.minimum(reach, np.arange(len(values)))
    return np.array([values[i - r : i + r + 1].mean() for i, r in enumerate(reaches)])


def _draw_rate(panel: "Axes", steps: np.ndarray, rate: np.ndarray) -> None:
    panel.plot(steps, rate, color=GREY, linewidth=1.5)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("learning rate", fontsize=11)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _draw_probes(panel: "Axes", probes: list[dict[str, Any]]) -> None:
    """One line per score; a probe's scores are those that bear its name, as `knn_top1`."""
    scores = sorted({key for line in probes for key in line if key.startswith(f"{line['probe']}_")})
    for score, color in zip(scores, (ORANGE, BLUE, GREY, "#1b7837", "#762a83") * len(scores)):
        points = [(line["step"], line[score]) for line in probes if score in line]
        panel.plot(*zip(*points), color=color, marker="o", markersize=5, linewidth=1.5, label=score.replace("_", " "))
        panel.annotate(f"{points[-1][1]:.1f}", points[-1], (6, 4), textcoords="offset points", color=color)
        if points[0][0] == 0:
            level = points[0][1]
            panel.axhline(level, color=color, linestyle="--", linewidth=1, label=f"untrained encoder: {level:.1f}")
    panel.set_ylabel("probe score (%)", fontsize=11)
    panel.legend(frameon=False)
