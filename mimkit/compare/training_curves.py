"""How the runs went: each row's loss on its own scale, and the online probe on a common one."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from mimkit.compare.charts import Axis, Element, at, canvas, colour, curve, draw_levels, markup, node
from mimkit.compare.report_rows import Row
from mimkit.compare.units import short
from mimkit.show.curves import SETTLED, SMOOTH, running_mean

MOST = 120  # points of a curve
TICKS = 4  # on an axis, at most
Curve = Sequence[tuple[float, float]]  # images seen, value


def read_curves(row: Row, key: str) -> list[Curve]:
    """Each seed's values of a key of metrics.jsonl, over the images seen."""
    found: list[Curve] = []
    for lines in row.metrics():
        batch = next((line["images"] / line["step"] for line in lines if line.get("images")), 1.0)
        points = [(line["step"] * batch, float(line[key])) for line in lines if line.get(key) is not None]
        if len(points) > 1:
            found.append(points)
    return found


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over the seeds, where all of them have a value."""
    seeds = [dict(points) for points in curves]
    shared = [images for images in seeds[0] if all(images in one for one in seeds)]
    return [(images, sum(one[images] for one in seeds) / len(seeds)) for images in shared]


def draw_loss(row: Row, curves: Sequence[Curve], images: Axis) -> Markup:
    """The running mean of each seed's loss; the steep beginning may leave the plot."""
    smooth = [_smooth(points) for points in curves]
    settled = [value for points in smooth for _, value in points[len(points) // SETTLED :] if np.isfinite(value)]
    y = Axis.around(settled)
    svg = canvas("plot small", f"Loss of {row.name} over the images seen", f"at the end {smooth[0][-1][1]:.4g}")
    _draw_axes(svg, images, y)
    for points in smooth:
        _draw_curve(svg, points, images, y, f"line {colour(row.number)}")
    return markup(svg)


def draw_probe(row: Row, curves: Mapping[int, Curve], images: Axis, y: Axis, label: str) -> Markup:
    """A row's online probe, mean over its seeds; behind it those of the other rows. curves: by the rows' numbers."""
    own = curves[row.number]
    (_, first), (end, last) = own[0], own[-1]
    svg = canvas("plot small", f"{label} of {row.name} over the images seen", f"from {first:.1f} to {last:.1f} %")
    _draw_axes(svg, images, y)
    for number, points in curves.items():
        if number != row.number:
            _draw_curve(svg, points, images, y, "line other")
    _draw_curve(svg, own, images, y, f"line {colour(row.number)}")
    group = at(svg, images.place(end), y.place(last), colour(row.number))
    node(group, "path", d="M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", class_="mark")
    node(group, "text", f"{last:.1f}", y=-9, text_anchor="end", class_="label")
    return markup(svg)


def _smooth(points: Curve) -> Curve:
    values = np.array([value for _, value in points])
    smooth = running_mean(values, len(values) // SMOOTH)
    return [(images, float(value)) for (images, _), value in zip(points, smooth, strict=True)]


def _draw_axes(svg: Element, images: Axis, y: Axis) -> None:
    draw_levels(svg, y, TICKS)
    for tick in images.ticks(TICKS):
        node(at(svg, images.place(tick), 0), "text", short(tick), y=16, text_anchor="middle", class_="tick")


def _draw_curve(svg: Element, points: Curve, images: Axis, y: Axis, class_: str) -> None:
    """At most 120 of the points, the last one among them; what is not finite is left out."""
    chosen = {round(number) for number in np.linspace(0, len(points) - 1, min(MOST, len(points)))}
    kept = [points[number] for number in sorted(chosen) if np.isfinite(points[number][1])]
    curve(svg, [(images.place(seen), y.place(value)) for seen, value in kept], class_)
