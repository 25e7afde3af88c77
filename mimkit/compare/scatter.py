"""Score against cost, every point named, with the front of those that nothing beats in both."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mimkit.compare.charts import (
    Axis,
    Element,
    at,
    canvas,
    colour,
    curve,
    draw_levels,
    level,
    mark,
    markup,
    node,
    upright,
)
from mimkit.compare.labels import BESIDE, Labels, shorten
from mimkit.compare.report_rows import Row
from mimkit.compare.strips import score_axis
from mimkit.compare.units import plain

TICKS = 5  # of costs, at most
NAMED = 9  # points that all bear their names; of more only those on the front do, the others bear their ranks
Point = tuple[float, float]


def draw_costs(rows: Sequence[Row], probe: str, label: str, costs: Mapping[int, float], unit: str) -> Markup:
    """Score against cost of the trained rows of which both are known; nothing where there are none.

    costs: by the rows' numbers, in `unit`. References (untrained, teacher) are lines across; those far from the scores
    are named at the edge.
    """
    trained = [row for row in rows if row.kind == "recipe" and probe in row.scores and row.number in costs]
    if not trained:
        return Markup("")
    points = [(row, row.scores[probe], costs[row.number]) for row in trained]
    references = {row.name: row.scores[probe].mean for row in rows if row.kind != "recipe" and probe in row.scores}
    x = Axis.around([cost for *_, cost in points], log=True)
    y = score_axis(rows, probe)
    words = "; ".join(f"{row.name}: {score} % at {plain(cost)} {unit}" for row, score, cost in points)
    svg = canvas("plot", f"{label} against {unit}", words)
    draw_levels(svg, y)
    for tick in x.ticks(TICKS):
        upright(svg, x.place(tick), "grid")
        node(at(svg, x.place(tick), 0), "text", f"{tick:g}", y=18, text_anchor="middle", class_="tick")
    front = steps(pareto([(cost, score.mean) for _, score, cost in points]))
    curve(svg, [(x.place(cost), y.place(score)) for cost, score in front], "front")
    places = [(row, score, x.place(cost), y.place(score.mean)) for row, score, cost in points]
    for row, score, px, _ in places:
        if score.half_width is not None:
            low, high = y.span(score.mean - score.half_width, score.mean + score.half_width)
            upright(node(svg, "g", class_=colour(row.number)), px, "whisker", low, high)
    for row, score, px, py in places:
        mark(svg, row.number, px, py, f"{row.name}: {score} %")
    labels = Labels()
    for *_, px, py in places:
        labels.keep_free(px, py, 6)
    _draw_references(svg, references, y, labels)
    best = {score for _, score in front}
    for rank, (row, score, px, py) in enumerate(sorted(places, key=lambda place: -place[3]), start=1):
        text = shorten(row.name) if len(places) <= NAMED or score.mean in best else str(rank)
        labels.write(svg, text, [(px, py, spot) for spot in BESIDE], "label")
    return markup(svg)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those (cost, score) that no other beats by a cost not higher and a score not lower; cheapest first."""
    front: list[Point] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def steps(front: Sequence[Point]) -> list[Point]:
    """The best score that a budget buys, as corners: level up to the next point, then up."""
    corners = list(front[:1])
    for cost, score in front[1:]:
        corners += [(cost, corners[-1][1]), (cost, score)]
    return corners


def _draw_references(svg: Element, references: Mapping[str, float], y: Axis, labels: Labels) -> None:
    """Each as a level line with its name; outside the axis only name, value and an arrow at that edge."""
    for name, value in references.items():
        place, text = y.place(value), shorten(name)
        heights = (-4.0, 13.0)
        if 0 <= place <= 100:
            level(svg, place, "reference")
        else:
            above = place > 100
            place, text = (100.0, f"↑ {text} {value:.1f}") if above else (0.0, f"↓ {text} {value:.1f}")
            heights = (10.0, 24.0) if above else (-6.0, -20.0)
        spots = [(0.0, (2.0, dy, "start")) for dy in heights] + [(100.0, (-2.0, dy, "end")) for dy in heights]
        labels.write(svg, text, [(x, place, spot) for x, spot in spots], "label faint")
