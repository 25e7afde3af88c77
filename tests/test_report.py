"""The report's page: whole, alone, safe against what it is told, and there at every stage of a bench."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import mimkit
from mimkit.compare.gallery import draw_pictures
from mimkit.compare.report import write_report
from mimkit.compare.report_rows import read_results, read_rows
from mimkit.compare.strips import score_axis
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.saved.encoder import save_encoder
from mimkit.train.optim import build_optimizer
from mimkit.weights import checkpoint

VOID = {"meta", "img", "br", "link", "input", "hr"}
STATUSES = ("done", "running", "waiting", "failed", "partial")
NASTY = 'a <script>alert(1)</script> & "b"'


class Page(HTMLParser):
    """Tags, their attributes and the text of a page; unbalanced tags are an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def score(values: list[float]) -> dict[str, Any]:
    return {"mean": sum(values) / len(values), "ci95": 0.6 if len(values) > 1 else None, "values": values}


def row(
    name: str, knn: float, status: str = "done", kind: str = "recipe", seeds: int = 2, **more: Any
) -> dict[str, Any]:
    """A row of results.json as the bench writes it."""
    done = {"done": seeds, "partial": 1, "running": min(1, seeds)}.get(status, 0)
    values = [knn + 0.2 * seed for seed in range(done)]
    told = [
        {
            "seed": seed, "folder": f"runs/{name.partition(' ')[0]}/seed-{seed}", "status": "done" if seed < done else "failed",
            "error": None, "stage": None, "health": {"effective_rank": 12.5, "patch_similarity": 0.4, "r2": 0.3},
            "flops": 2e15, "flops_target": 5e14, "flops_stage": 1e15, "seconds": 40.0, "seconds_stage": 20.0,
            "images_per_s": 1234.0, "scores": {"knn": {"metric": "top1", "value": knn, "standard_error": 0.5}},
        }
        for seed in range(seeds)
    ]  # fmt: skip
    return {
        "name": name, "kind": kind, "recipe": name, "changes": [], "status": status, "encoder": "vit, 0.01 M parameters",
        "error": "it broke" if status in ("failed", "partial") else None, "seeds": told,
        "scores": {"knn": score(values)} if values else {}, "flops": 2e15, "seconds": 40.0, "images_per_s": 1234.0,
        "peak_memory": 5e8, "parameters": 12345, "encoder_parameters": 9000, **more,
    }  # fmt: skip


def bench(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Path:
    settings = {"equal": "images", "budget": 5000, "seeds": [0, 1], "probes": ["knn"], "overrides": [], "applies": {}}
    told = {
        "format": 1, "mimkit": "0.1.0", "command": "mimkit bench a b", "started": "2026-01-02T03:04:05", "finished": None,
        "settings": settings, "environment": {}, "data": {"name": "shapes", "train": 60, "test": 20}, "notes": [], "rows": rows,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps({**told, **more}))
    return folder


def begin_run(folder: Path, tiny: dict[str, Any], *given: str) -> None:
    """A run's recipe and metrics, without training."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load_recipe(tiny, given).to_yaml())
    lines: list[dict[str, Any]] = [
        {"step": 0, "probe": "knn", "knn_top1": 20.0},
        {"step": 10, "probe": "knn", "knn_top1": 30.0},
    ]
    lines += [{"step": step, "images": 8 * step, "loss": 1 / step} for step in range(1, 11)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def full(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A bench with a row of every status and kind, two of which have runs."""
    begin_run(tmp_path / "runs" / "one" / "seed-0", tiny)
    begin_run(tmp_path / "runs" / "two" / "seed-0", tiny, "mask.ratio=0.5")
    rows = [
        row(name, 40.0 + number, status)
        for number, (name, status) in enumerate(zip(("one", "two", "three", "four", "five"), STATUSES))
    ]
    rows += [row("untrained vit", 30.0, kind="untrained"), row("teacher", 90.0, kind="teacher", seeds=1)]
    return bench(tmp_path, rows, notes=["batch sizes differ"])


def test_the_page_is_balanced_and_needs_nothing_else(full: Path) -> None:
    path = write_report(full)
    text = path.read_text()
    page = Page(text)
    assert path == full / "report.html" and not list(full.glob(".writing*"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"data:image/[^\"]*", "", text))
    assert "url(" not in text and "@import" not in text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert all(value is None or value.startswith("data:") for name, value in attributes.items() if name == "src")
        assert tag != "th" or attributes.get("scope") in ("row", "col")
        assert tag != "img" or attributes.get("alt")
        assert attributes.get("role") != "img" or attributes.get("aria-label")


def test_every_status_is_told(full: Path) -> None:
    text = Page(write_report(full).read_text()).text
    assert "So far: five is best with 44.0" in text and "one seed cannot tell" in text
    for words in (
        "running, 1 of 2 seeds done",
        "waiting",
        "four failed: it broke",
        "five has 1 of 2 seeds: it broke",
        "batch sizes differ",
    ):
        assert words in text, words
    assert "Each recipe saw 5 000 images of shapes, in the same order; 2 seeds each." in text
    assert "3.00 PFLOP teacher 0.50 tokenizer 1.00" in text and "60 s tokenizer 20 s" in text
    assert "The bench is not finished: 7 of 13 runs are done" in text
    assert "not drawn" in text  # the runs have no checkpoint
    assert "mask.ratio 0.75 0.5" in text and "mask.name" not in text.partition("Recipes in full")[0]


def test_a_bench_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    text = Page(
        write_report(bench(tmp_path, [row("one", 1.0, "waiting"), row("two", 1.0, "running", seeds=0)])).read_text()
    ).text
    assert "No recipe has a score yet." in text
    Page(write_report(bench(tmp_path, [], data=None, environment=None)).read_text())


def test_names_and_errors_are_escaped(full: Path) -> None:
    rows = [row(NASTY, 40.0), row("other", 39.0), row(f"failed {NASTY}", 1.0, "failed", error=NASTY)]
    bench(full, rows, notes=[NASTY], command=NASTY, data={"name": NASTY})
    page = Page(write_report(full).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(NASTY) > 8


def test_a_score_stands_at_its_place_on_the_axis(full: Path) -> None:
    rows = read_rows(full, read_results(full))
    axis = score_axis(rows, "knn")
    assert axis.low < 40 < axis.high < 90  # the teacher would press the others together
    assert axis.place((axis.low + axis.high) / 2) == pytest.approx(50)
    strip = write_report(full).read_text().partition('aria-label="one: 40.1 ± 0.6 %"')[2].partition("</td>")[0]
    wanted = f'<svg x="{axis.place(40.1):.2f}%" y="50.00%" class="at"><path d="M-5'
    assert wanted in strip
    ends = [f"{axis.place(end):.2f}%" for end in (39.5, 40.7)]
    assert f'x1="{ends[0]}" x2="{ends[1]}" class="whisker"' in strip


def test_colours_can_be_read_in_light_and_dark(full: Path) -> None:
    """WCAG's contrast: 4.5 for text, 3 for marks."""

    def luminance(colour: str) -> float:
        colour = colour * 2 if len(colour) == 3 else colour
        parts = [int(colour[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(*colours: str) -> float:
        dark, light = sorted(luminance(colour) for colour in colours)
        return (light + 0.05) / (dark + 0.05)

    blocks = re.findall(r":root \{(.*?)\}", write_report(full).read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): #(\w+)", block))
        assert all(
            contrast(colours[name], colours[page]) >= 4.5
            for name in ("text", "faint", "alarm")
            for page in ("page", "panel")
        )
        assert all(contrast(colours[f"c{number}"], colours["page"]) >= 3 for number in range(8))


def test_pictures_are_drawn_once_from_the_runs_weights(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "one" / "seed-0"
    begin_run(run, tiny)
    recipe = load_recipe(tiny)
    model = mimkit.build(tiny)
    checkpoint.save(run / "checkpoints", 1, model, [build_optimizer(model, recipe.optim)], {}, 1)
    save_encoder(run, model.encoder, recipe.encoder.name, recipe.encoder.options)
    bench(tmp_path, [row("one", 40.0)])
    images = [attributes for tag, attributes in Page(write_report(tmp_path).read_text()).tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        "Test images, masked, and what one makes of them", "Test images and the features that one gives",
    ]  # fmt: skip
    monkeypatch.setattr(nn.Module, "__call__", None)  # nothing is computed again
    pictures = draw_pictures(read_rows(tmp_path, read_results(tmp_path))[0])
    assert [picture.uri for picture in pictures] == [image["src"] for image in images]
    assert len(list((run / "pictures").iterdir())) == 2


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        write_report(tmp_path)
    bench(tmp_path, [], format=2)
    with pytest.raises(UserError, match="has format 2, this mimkit reads 1"):
        write_report(tmp_path)
