"""Charts as inline SVG: places along an axis are percentages, so that a chart fills its column and its text keeps its size.

Nothing is coloured here: classes (`c0` … for a row's colour, `mark`, `line`, `grid`, …) take their colours from the
page, which has a light and a dark one of each. Labels stand outside the plot's area, whose margins the page gives.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree import ElementTree

from markupsafe import Markup

Element = ElementTree.Element
COLOURS = 8  # as many as the page has
MARKS = (  # paths around the origin, 10 px wide: circle, square, diamond, triangle
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.5-4.5h9v9h-9z",
    "M0-6.2L6.2 0L0 6.2L-6.2 0z",
    "M0-6L5.8 4.5H-5.8z",
)
ROOM = 0.06  # of the span of the values, left free at both ends of an axis
MANY = 6  # ticks, more would be crowded


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` laid out from 0 to 100 percent; `log`: by their logarithms."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], log: bool = False) -> "Axis":
        """An axis on which all values fit with some room; for equal values, or none, an arbitrary span around them."""
        known = list(values) or [1.0]
        low, high = min(known), max(known)
        if log:
            room = max((high / low) ** ROOM, 1.25)
            return cls(low / room, high * room, log=True)
        room = (high - low) * ROOM or abs(high) * ROOM or 1.0
        return cls(low - room, high + room)

    def place(self, value: float) -> float:
        """Percent of the way from `low` to `high`."""
        low, high, at = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return 100 * (at - low) / (high - low)

    def span(self, low: float, high: float) -> tuple[float, float]:
        """The places of an interval's ends, cut at the ends of the axis."""
        low, high = (min(max(self.place(value), 0.0), 100.0) for value in (low, high))
        return low, high

    def holds(self, value: float) -> bool:
        """Whether a value lies on the axis."""
        return self.low <= value <= self.high

    def ticks(self, most: int = MANY) -> list[float]:
        """At most `most` round values on the axis: 1, 2 or 5 times a power of ten, or their multiples."""
        if self.log and self.high / self.low > 8:
            return self._decades(most)
        rough = (self.high - self.low) / most
        power = 10.0 ** floor(log10(rough))
        step = next(step for m in (1, 2, 5, 10, 20) if (step := m * power) * most >= self.high - self.low)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]

    def _decades(self, most: int) -> list[float]:
        """1, 2 and 5 in each decade; where those are too many, 1 alone, and of those each second, third, …"""
        powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [digit * 10.0**power for power in powers for digit in digits]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) <= most:
                return ticks
        return ticks[:: ceil(len(ticks) / most)]


def node(parent: Element, tag: str, text: str = "", **attributes: str | float) -> Element:
    """A new element in `parent`; `stroke_width` becomes `stroke-width`, `class_` becomes `class`."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    child = ElementTree.SubElement(parent, tag, {key: _attribute(value) for key, value in named.items()})
    child.text = text or None
    return child


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def percent(value: float) -> str:
    """A place as SVG writes it, cut to what lies near the plot."""
    return f"{min(max(value, -1000.0), 1000.0):.2f}%"


def canvas(kind: str, title: str, description: str = "") -> Element:
    """An empty plot of the page's class `kind`; the title and description are read to those who do not see it."""
    svg = Element("svg", {"class": kind, "role": "img", "aria-label": title})
    node(svg, "title", title)
    if description:
        node(svg, "desc", description)
    return svg


def at(parent: Element, x: float, y: float, class_: str = "") -> Element:
    """A group whose origin lies at (x, y) percent; within it lengths are pixels. y counts upward."""
    group = node(parent, "svg", x=percent(x), y=percent(100 - y), class_=f"at {class_}".strip())
    return group


def upright(parent: Element, x: float, class_: str, low: float = 0, high: float = 100) -> Element:
    """A vertical line at x percent, from `low` to `high`."""
    return node(
        parent, "line", x1=percent(x), x2=percent(x), y1=percent(100 - low), y2=percent(100 - high), class_=class_
    )


def level(parent: Element, y: float, class_: str, low: float = 0, high: float = 100) -> Element:
    """A horizontal line at y percent, from `low` to `high`."""
    return node(
        parent, "line", y1=percent(100 - y), y2=percent(100 - y), x1=percent(low), x2=percent(high), class_=class_
    )


def curve(parent: Element, points: Sequence[tuple[float, float]], class_: str) -> Element:
    """A line through points in percent; what leaves the plot is cut off. Its width does not stretch with the plot."""
    inner = node(parent, "svg", viewBox="0 0 100 100", preserveAspectRatio="none", class_="inner")
    path = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in points)
    return node(inner, "polyline", points=path, class_=class_)


def draw_levels(svg: Element, y: Axis, most: int = MANY) -> None:
    """Grid lines at round values, each with its figure at the left."""
    for tick in y.ticks(most):
        level(svg, y.place(tick), "grid")
        node(at(svg, 0, y.place(tick)), "text", f"{tick:g}", x=-8, y=4, text_anchor="end", class_="tick")


def mark(parent: Element, number: int, x: float, y: float, name: str) -> Element:
    """The mark of row `number`: colour and, after eight rows, form are its own; `name` is what it tells when pointed at."""
    group = at(parent, x, y, colour(number))
    node(group, "title", name)
    return node(group, "path", d=form(number), class_="mark")


def colour(number: int) -> str:
    """The class of a row's colour."""
    return f"c{number % COLOURS}"


def form(number: int) -> str:
    """The path of a row's mark."""
    return MARKS[number // COLOURS % len(MARKS)]


def swatch(number: int) -> Markup:
    """A row's mark alone, to stand beside its name."""
    svg = Element("svg", {"class": f"swatch {colour(number)}", "viewBox": "-7 -7 14 14", "aria-hidden": "true"})
    node(svg, "path", d=form(number), class_="mark")
    return markup(svg)


def markup(svg: Element) -> Markup:
    """The SVG as a part of an HTML page."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
