"""YAML 1.2 scalars and the refusals, by hand-written cases (YAML 1.2.2, section 10.3)."""

import math

import pytest

from mimkit import strict_yaml
from mimkit.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("-3", -3), ("010", 10), ("1_000", "1_000"), ("0x10", "0x10"),
        ("on", "on"), ("yes", "yes"), ("true", True), ("False", False), ("null", None), ("~", None), ("12:30", "12:30"),
        ("./photos", "./photos"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = strict_yaml.read(f"key: {text}", "x")[0]["key"]
    assert read == value and type(read) is type(value)
    assert strict_yaml.scalar(text) == value


def test_quoted_scalars_stay_text() -> None:
    assert strict_yaml.read("a: '1e-4'\nb: \"true\"", "x")[0] == {"a": "1e-4", "b": "true"}


def test_infinity_is_read_so_that_it_can_be_refused_later() -> None:
    assert strict_yaml.scalar(".inf") == math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3: key 'a' is given twice, first in line 1"),
        ("a: {b: 1, b: 2}", "x.yaml:1: key 'b' is given twice"),
        ("a: &n 1\nb: *n", "x.yaml:1: anchors and aliases"),
        ("a: !!python/object:os.system x", "x.yaml:1: tags are not allowed"),
        ("a: [1, 2", "x.yaml:1: not YAML"),
        ("- a\n- b", "x.yaml: a recipe is a mapping"),
        ("", "x.yaml: the recipe is empty"),
        ("a: " + "[" * 5000 + "]" * 5000, "x.yaml: nested too deeply"),
    ],
)
def test_what_is_not_a_plain_recipe_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        strict_yaml.read(text, "x.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_places_name_the_line_of_every_key() -> None:
    places = strict_yaml.read("a: 1\nb:\n  c: 2\n", "x.yaml")[1]
    assert places[("b", "c")] == "x.yaml:3" and places[("a",)] == "x.yaml:1"


def test_dump_reads_back() -> None:
    values = {"a": 1e-8, "b": 2.0, "c": "1e-4", "d": [1, None, True], "e": {"f": "on", "g": "null", "h": 1e30}}
    assert strict_yaml.read(strict_yaml.dump(values), "x")[0] == values
