"""Names beside points, placed so that they do not cover each other."""

from collections.abc import Sequence

from mimkit.compare.charts import Element, at, node

AREA = (260.0, 250.0)  # pixels of a plot on a phone: labels that have room there have it on every screen
LETTER, LINE = 6.6, 13.0  # pixels of a label's letter and line
DROP = 3.5  # of letters below their line
LONGEST = 24  # letters of a label
Spot = tuple[float, float, str]  # pixels right and down from the point to the label's anchor, and which end that is
BESIDE: tuple[Spot, ...] = (
    (10, 4, "start"), (-10, 4, "end"), (0, -11, "middle"), (0, 19, "middle"),
    (7, -9, "start"), (7, 17, "start"), (-7, -9, "end"), (-7, 17, "end"),
)  # fmt: skip
Box = tuple[float, float, float, float]  # left, right, top, bottom


class Labels:
    """The labels of one plot; each takes the first of its spots that is free, or the least covered one."""

    def __init__(self) -> None:
        self.taken: list[Box] = []

    def keep_free(self, x: float, y: float, reach: float) -> None:
        """No label is to come so near (in pixels) to the point at (x, y) percent."""
        left, top = _pixels(x, y)
        self.taken.append((left - reach, left + reach, top - reach, top + reach))

    def write(self, svg: Element, text: str, places: Sequence[tuple[float, float, Spot]], class_: str) -> None:
        """Write a label at the best of its places: x, y in percent and the spot beside it."""
        boxes = [_box(text, *place) for place in places]
        best = min(range(len(boxes)), key=lambda number: (round(self._covered(boxes[number])), number))
        x, y, (dx, dy, anchor) = places[best]
        node(at(svg, x, y), "text", text, x=dx, y=dy, text_anchor=anchor, class_=class_)
        self.taken.append(boxes[best])

    def _covered(self, box: Box) -> float:
        """Square pixels of `box` that others take or that leave the plot's area."""
        left, right, top, bottom = box
        whole = (right - left) * (bottom - top)
        inside = _overlap(box, (-4, AREA[0] + 12, -6, AREA[1] + 2))
        return whole - inside + sum(_overlap(box, other) for other in self.taken)


def shorten(name: str) -> str:
    """A name of at most 24 letters, its middle left out."""
    return name if len(name) <= LONGEST else f"{name[:8]}…{name[9 - LONGEST :]}"


def _pixels(x: float, y: float) -> tuple[float, float]:
    return x / 100 * AREA[0], (100 - y) / 100 * AREA[1]


def _box(text: str, x: float, y: float, spot: Spot) -> Box:
    left, top = _pixels(x, y)
    width = LETTER * len(text)
    left += spot[0] - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[spot[2]]
    bottom = top + spot[1] + DROP
    return left, left + width, bottom - LINE, bottom


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[2], b[2]))
