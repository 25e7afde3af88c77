"""What `mimkit bench` is asked for, checked before any work."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mimkit.compare import length
from mimkit.compare.plan import LENGTHS, Plan, key_of
from mimkit.compare.run import Currency
from mimkit.data.open import open_data
from mimkit.disk import write_text
from mimkit.errors import UserError, nearest
from mimkit.evaluate.labelled import fingerprint, labelled_sources, labels_sha256
from mimkit.evaluate.options import OF_IMAGES, PROBES, Order, read_order
from mimkit.recipe import Recipe


@dataclass(frozen=True)
class Seen:
    """The images of a bench.

    told: their name and numbers, as results.json has them.
    fingerprint: changes with those to train on. labels: with the labels that are scored; empty where none are.
    """

    told: dict[str, Any]
    fingerprint: str
    labels: str


@dataclass(frozen=True)
class Request:
    """What `mimkit bench` is called with.

    words: recipes and overrides. seeds: how many. equal, budget: of what all rows get as much; None: images, as many as
    the first recipe takes. probes: names. out: the folder. plugins: files of components.
    """

    words: tuple[str, ...]
    seeds: int
    equal: str
    budget: float | None
    probes: tuple[str, ...]
    out: Path
    plugins: tuple[Path, ...] = ()


def is_of_probes(word: str) -> bool:
    """Whether a word is an option of probes: `knn.k=10`, or `bank=10000` for all."""
    key, equals, _ = word.partition("=")
    return bool(equals) and (key.partition(".")[0] in PROBES or key in OF_IMAGES)


def order_of(first: Recipe, probes: Sequence[str], options: Sequence[str]) -> Order:
    """The probes with all their options, checked as `mimkit eval` will. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "recipe.yaml", first.to_yaml())
        return read_order(Path(folder), probes, options)


def images_of(first: Recipe, order: Order) -> Seen:
    """The images that all recipes see. Raises UserError where they cannot be had, or have no labels for the probes."""
    data = open_data(first.data.name, first.data.options, first.image_size, first.encoder.options.get("in_chans", 3))
    labels = ""
    if order.data is not None:
        labels = labels_sha256(labelled_sources(data, order.settings.bank, order.settings.queries))
    counts = {"train": len(data.train), "test": len(data.test) if data.test else 0}
    return Seen({"name": data.name, **counts}, fingerprint(data.name, data.train), labels)


def budget_of(request: Request, plan: Plan, first: Recipe, images: int) -> float:
    """What each recipe gets. Raises UserError where that is not told, or told twice, or of what no recipe can get."""
    if request.equal not in get_args(Currency):
        known = get_args(Currency)
        raise UserError(
            f"--equal {request.equal}{nearest(request.equal, known) or ';'} It is one of {', '.join(known)}"
        )
    lengths = [text for text in (*plan.general, *plan.own) if key_of(text).rpartition(":")[2] in LENGTHS]
    if request.budget is not None and lengths:
        raise UserError(f"override '{lengths[0]}': --budget says how long each recipe is trained")
    if request.budget is not None and request.budget <= 0:
        raise UserError(f"--budget {request.budget:g} should be greater than 0")
    if request.budget is not None:
        return request.budget
    if request.equal != "images":
        raise UserError(f"--equal {request.equal} needs --budget {request.equal.upper()}")
    return length.own_steps(first, images) * length.batch_of(first, images)
