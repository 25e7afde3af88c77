"""The report's arithmetic: tests, fronts, axes, places along them, units, by hand or by scipy."""

from math import atan, pi, sqrt
from typing import Any

import pytest

from mimkit.compare.charts import Axis
from mimkit.compare.differences import differing, flatten
from mimkit.compare.findings import cheapest, difference, find, relative_cost, two_sided_p, welch
from mimkit.compare.labels import AREA, Labels, shorten
from mimkit.compare.report_rows import Row, Score
from mimkit.compare.report_words import headline
from mimkit.compare.scatter import pareto, steps
from mimkit.compare.training_curves import mean_curve
from mimkit.compare.units import duration, grouped, millions, plain, prefix_of, quantity, short, time_unit


def row(name: str, values: tuple[float, ...], flops: float | None = None, **more: Any) -> Row:
    mean = sum(values) / len(values)
    error = more.pop("standard_error", 0.5)
    told = {
        "number": 0, "kind": "recipe", "status": "done", "error": None, "encoder": "vit", "seeds": (), "health": {},
        "folders": (), "text": "", "recipe": {}, "means": {"flops": flops} if flops else {},
    }  # fmt: skip
    scores = {"knn": Score(mean, values, 1.0 if len(values) > 1 else None, error)}
    return Row(name=name, scores=scores, **{**told, **more})


def test_students_t_with_one_and_two_degrees_of_freedom() -> None:
    """Closed forms: 1 - 2/pi atan(t), and 1 - t / sqrt(2 + t^2)."""
    for t in (0.0, 0.3, 1.0, 4.0, 40.0):
        assert two_sided_p(t, 1) == pytest.approx(1 - 2 / pi * atan(t), abs=1e-6)
        assert two_sided_p(-t, 2) == pytest.approx(1 - t / sqrt(2 + t * t), abs=1e-6)
    assert two_sided_p(12.706, 1) == pytest.approx(0.05, abs=1e-5)  # the table's quantiles
    assert two_sided_p(2.776, 4) == pytest.approx(0.05, abs=1e-4)


def test_welch_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for a, b in (
        ([40.1, 40.9, 40.3], [38.0, 39.5, 38.8]),
        ([1.0, 2.0], [1.5, 9.0, 4.0, 2.0]),
        ([5.0, 5.1], [3.0, 3.2]),
    ):
        assert welch(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-4)


def test_welch_by_hand() -> None:
    """Means 2 and 5, variances 1 and 1, three values each: t = 3 / sqrt(2/3), 4 degrees of freedom."""
    assert welch([1, 2, 3], [4, 5, 6]) == pytest.approx(two_sided_p(3 / sqrt(2 / 3), 4), rel=1e-9)
    assert welch([2, 2], [2, 2]) == 1 and welch([2, 2], [3, 3]) == 0


def test_one_seed_is_held_against_the_test_set_alone() -> None:
    """Standard errors 0.3 and 0.4: 95 % of differences lie within 1.96 x 0.5 = 0.98."""
    first, wide, near = (Score(mean, (mean,), None, error) for mean, error in ((41.0, 0.3), (40.0, 0.4), (40.05, 0.4)))
    assert difference(first, wide).apart and not difference(first, near).apart
    assert difference(first, wide).p is None and difference(first, wide).points == 1
    assert wide.half_width == pytest.approx(0.784) and str(wide) == "40.0 ± 0.8"


def test_the_headline_names_the_best_row_its_lead_and_its_price() -> None:
    good, close = row("good", (41.0, 41.4, 41.2), 3e15), row("close", (41.1, 40.7, 41.3), 1e15)
    poor = row("poor", (30.0, 30.3, 30.1), 2e15)
    found = find([poor, close, good], "knn")
    assert [one.name for one in found.ranking] == ["good", "close", "poor"] and found.rivals == [close]
    assert cheapest([good, poor]) is poor and cheapest([good, row("unknown", (1.0,))]) is None
    assert relative_cost(good, close) == (pytest.approx(3), "compute")
    text = headline(found, "kNN").replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "good is best with 41.2 ± 1.0 % kNN; its lead of 0.2 points over close may be chance (p = 0."
    )
    assert text.endswith("it took 3.00 \N{MULTIPLICATION SIGN} the compute of close, which may be as good.")
    assert "over poor is real; it took 1.50" in headline(find([poor, good], "knn"), "kNN")
    alone = [row("a", (40.0,)), row("b", (30.0,))]
    assert headline(find(alone, "knn"), "kNN") == (
        "a is best with 40.0 ± 1.0 % kNN; one seed cannot tell whether its lead of 10.0 points over b is real."
    )
    assert headline(find([], "knn"), "kNN") == "No recipe has a score yet."


def test_what_does_not_beat_its_untrained_encoder_is_named() -> None:
    floor = row("untrained", (30.0, 30.2, 30.1), kind="untrained")
    worse, better, other = (
        row("worse", (20.0, 20.2)),
        row("better", (35.0, 35.1)),
        row("other", (1.0, 1.1), encoder="swin"),
    )
    assert find([worse, better, other, floor], "knn").idle == [worse]
    small, large = ({"encoder": {"name": "vit", "depth": depth}, "image_size": [32, 32]} for depth in (2, 6))
    rows = [row(name, (20.0, 20.2), recipe=recipe) for name, recipe in (("small", small), ("large", large))]
    assert find([*rows, row("untrained", (30.0, 30.2), kind="untrained", recipe=large)], "knn").idle == rows[1:]


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(3.0, 5.0), (1.0, 2.0), (2.0, 1.0), (2.5, 4.0), (3.0, 4.5), (4.0, 5.0)]
    assert pareto(points) == [(1.0, 2.0), (2.5, 4.0), (3.0, 5.0)]
    assert steps([(1.0, 2.0), (2.5, 4.0)]) == [(1.0, 2.0), (2.5, 2.0), (2.5, 4.0)]


def test_places_on_an_axis() -> None:
    axis = Axis(20.0, 60.0)
    assert [axis.place(value) for value in (20, 30, 60)] == [0, 25, 100]
    assert Axis(1.0, 1000.0, log=True).place(10.0) == pytest.approx(100 / 3)
    around = Axis.around([10.0, 20.0])
    assert (around.low, around.high) == (pytest.approx(9.4), pytest.approx(20.6))
    assert Axis.around([5.0, 5.0]).low < 5 < Axis.around([5.0, 5.0]).high and Axis.around([0.0]).low < 0
    assert axis.span(10, 30) == (0, 25) and axis.span(30, 99) == (25, 100)
    assert around.holds(20) and not around.holds(21)


@pytest.mark.parametrize("most", [3, 4, 6])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (27.3, 46.1), (-0.2, 0.013), (1e-4, 3e-4), (0.0, 50_000.0), (3.0, 900.0)]
)
def test_ticks_are_few_round_and_on_the_axis(low: float, high: float, most: int) -> None:
    for axis in (Axis(low, high), Axis(max(low, 1e-5), high, log=True)):
        ticks = axis.ticks(most)
        assert 1 <= len(ticks) <= most + 1 and ticks == sorted(ticks)
        assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in ticks)
        assert all(len(f"{abs(tick):.6e}".split("e")[0].rstrip("0").rstrip(".")) <= 4 for tick in ticks)


def test_labels_of_near_points_do_not_touch() -> None:
    from xml.etree.ElementTree import Element

    labels, svg = Labels(), Element("svg")
    spots = [(50.0, 50.0, (0.0, dy, "middle")) for dy in (0.0, 20.0)]
    for _ in range(2):
        labels.write(svg, "name", spots, "label")
    assert [text.get("y") for text in svg.iter("text")] == ["0", "20"]
    (left, right, top, bottom), _ = labels.taken
    assert (left + right) / 2 == AREA[0] / 2 and top < AREA[1] / 2 < bottom
    assert shorten("mae") == "mae" and len(shorten("mae optim.base_lr=0.001 mask.ratio=0.5")) == 24


def test_numbers_as_people_read_them() -> None:
    thin = "\N{NARROW NO-BREAK SPACE}"
    assert (grouped(50000), grouped(999)) == (f"50{thin}000", "999")
    assert [plain(value) for value in (123.4, 12.34, 1.234, 0.1234, 0.0123, 0)] == [
        "123",
        "12.3",
        "1.23",
        "0.12",
        "0.012",
        "0.00",
    ]
    assert (quantity(1.2e15, "FLOP"), quantity(999.6e12, "FLOP"), quantity(12, "s")) == (
        "1.20 PFLOP",
        "1.00 PFLOP",
        "12.0 s",
    )
    assert prefix_of([]) == (1.0, "") and prefix_of([5.0, 2e6]) == (1e6, "M") and short(50_000) == "50 k"
    assert [duration(seconds) for seconds in (4.0, 45.4, 131, 7300)] == ["4.00 s", "45 s", "2 min 11 s", "2 h 1 min"]
    assert (millions(812345), millions(86.6e6)) == ("0.81 M", "86.6 M")
    assert [time_unit([seconds])[1] for seconds in (100.0, 600.0, 90_000.0)] == ["s", "min", "h"]


def test_curves_are_averaged_where_all_seeds_have_a_value() -> None:
    assert mean_curve([[(0.0, 1.0), (64.0, 3.0), (128.0, 9.0)], [(0.0, 2.0), (64.0, 5.0)]]) == [(0.0, 1.5), (64.0, 4.0)]


def test_the_differences_are_exactly_the_options_that_differ() -> None:
    first = {
        "seed": 0,
        "mask": {"name": "random", "ratio": 0.5},
        "optim": {"lr": None, "betas": [0.9, 0.95]},
        "loss": {"name": "mse"},
    }
    second = {"seed": 1, "mask": {"name": "none"}, "optim": {"lr": 1e-3, "betas": [0.9, 0.95]}, "loss": {"name": "mse"}}
    assert flatten(first)["mask.ratio"] == 0.5
    assert differing({"a": first, "b": second}) == {
        "mask.name": {"a": "random", "b": "none"},
        "mask.ratio": {"a": "0.5"},
        "optim.lr": {"a": "null", "b": "0.001"},
    }
    assert differing({"a": first, "b": {**first, "seed": 7}}) == {}
