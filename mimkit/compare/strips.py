"""Scores along a common axis: a dot, its 95 % interval and the seeds' own values, a strip per row."""

from collections.abc import Sequence

from markupsafe import Markup

from mimkit.compare.charts import Axis, at, canvas, colour, form, level, markup, node, upright
from mimkit.compare.report_rows import Row, Score

SMALLER = "scale(0.8)"  # marks, so that intervals show beside them
TICKS = 4  # on a strip, at most


def score_axis(rows: Sequence[Row], probe: str) -> Axis:
    """The axis of a probe's scores: around those of the trained rows with their intervals, within 0 and 100.

    The other rows' (untrained, teacher) are on it too, unless they would press the trained rows' into less than half.
    """
    scores = [(row, row.scores[probe]) for row in rows if probe in row.scores]
    held = [end for row, score in scores if row.kind == "recipe" for end in _ends(score)]
    held = held or [end for _, score in scores for end in _ends(score)]
    low, high = min(held, default=0.0), max(held, default=100.0)
    reach = max(high - low, 1.0) / 2
    near = [score.mean for _, score in scores if low - reach <= score.mean <= high + reach]
    axis = Axis.around([low, high, *near])
    return Axis(max(axis.low, 0.0), min(axis.high, 100.0))


def _ends(score: Score) -> list[float]:
    half = score.half_width or 0.0
    return [*score.values, max(score.mean - half, 0.0), min(score.mean + half, 100.0)]


def draw_strip(row: Row, probe: str, axis: Axis, references: Sequence[Row]) -> Markup:
    """A row's score, with its references (untrained encoder, teacher) as lines across; nothing where it has none.

    A score that the axis does not hold is an arrow at its end.
    """
    score = row.scores.get(probe)
    if score is None:
        return Markup("")
    svg = canvas("strip", f"{row.name}: {score} %")
    for tick in axis.ticks(TICKS):
        upright(svg, axis.place(tick), "grid")
        node(at(svg, axis.place(tick), 0), "text", f"{tick:g}", y=12, text_anchor="middle", class_="tick")
    for reference in references:
        value = reference.scores[probe].mean
        if axis.holds(value):
            upright(svg, axis.place(value), f"reference {reference.kind}")
    group = node(svg, "g", class_=colour(row.number) if row.kind == "recipe" else "neutral")
    if not axis.holds(score.mean):
        side = 100.0 if score.mean > axis.high else 0.0
        node(
            at(svg, side, 50), "text", "→" if side else "←", y=4, text_anchor="end" if side else "start", class_="faint"
        )
        return markup(svg)
    if score.half_width is not None:
        low, high = axis.span(score.mean - score.half_width, score.mean + score.half_width)
        level(group, 50, "whisker" if score.ci95 is not None else "whisker single", low, high)
    for value in score.values if len(score.values) > 1 else ():
        node(at(group, axis.place(value), 50), "path", d="M0-9v18", class_="seed")
    node(
        at(group, axis.place(score.mean), 50),
        "path",
        d=form(row.number if row.kind == "recipe" else 0),
        class_="mark",
        transform=SMALLER,
    )
    return markup(svg)


def draw_scale(axis: Axis, label: str) -> Markup:
    """The axis alone, for the head of a column of strips."""
    svg = canvas("scale", f"{label}, from {axis.low:.0f} to {axis.high:.0f} %")
    for tick in axis.ticks(TICKS):
        node(at(svg, axis.place(tick), 0), "text", f"{tick:g}", y=-4, text_anchor="middle", class_="tick")
    return markup(svg)
