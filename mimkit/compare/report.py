"""report.html: everything that a bench found, on one page that needs no network, no script and no other file."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mimkit.compare import board, report_words
from mimkit.compare.charts import Axis, swatch
from mimkit.compare.differences import differing
from mimkit.compare.findings import Findings, find
from mimkit.compare.gallery import Picture, draw_pictures
from mimkit.compare.report_rows import Row, read_results, read_rows
from mimkit.compare.scatter import draw_costs
from mimkit.compare.strips import draw_scale, score_axis
from mimkit.compare.training_curves import draw_loss, draw_probe, mean_curve, read_curves
from mimkit.compare.units import grouped, prefix_of, time_unit
from mimkit.disk import write_text

TEMPLATE = "report.html.jinja"
ONLINE = "knn_top1"  # the probe that runs write into their metrics.jsonl
HEALTH = {
    "effective_rank": "Effective rank",
    "patch_similarity": "Patch similarity",
    "r2": "R²",
    "code_accuracy": "Codes right, %",
}


def write_report(folder: Path) -> Path:
    """Write folder/report.html from folder/results.json and the run folders, whatever there is of them yet; its path.

    Raises UserError where results.json is missing or damaged, OSError where the page cannot be written.
    """
    results = read_results(folder)
    rows = read_rows(folder, results)
    probes = list(results["settings"]["probes"])
    found = find(rows, probes[0])
    labels = {probe: report_words.probe_label(probe, rows) for probe in probes}
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template(TEMPLATE).render(
        results=results,
        title=_title(results, rows),
        headline=report_words.headline(found, labels[probes[0]]),
        facts=report_words.facts(found, labels[probes[0]]),
        budget=report_words.budget(results),
        warnings=report_words.warnings(results, rows, found),
        progress=report_words.progress(results, rows),
        **_board(rows, found, labels),
        scatters=_scatters(rows, probes[0], labels[probes[0]]),
        score_label=labels[probes[0]],
        curves=_curves(rows),
        health=_health(rows, found),
        pictures=_pictures(rows, found),
        recipes={row.name: row.text for row in rows if row.kind == "recipe" and row.text},
        differences=differing({row.name: row.recipe for row in rows if row.kind == "recipe" and row.recipe}),
        about=_about(folder, results),
        again=_again(folder, results, rows),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _title(results: Mapping[str, Any], rows: Sequence[Row]) -> str:
    count = sum(row.kind == "recipe" for row in rows)
    data = (results.get("data") or {}).get("name")
    on = f" on {Path(str(data)).name}" if data else ""
    return f"{count} recipe{'s' if count != 1 else ''}{on}"


def _board(rows: Sequence[Row], found: Findings, labels: Mapping[str, str]) -> dict[str, Any]:
    factor, prefix = prefix_of(row.flops for row in rows if row.flops)
    axes = {probe: score_axis(rows, probe) for probe in labels}
    scores = [score for row in rows for score in row.scores.values()]
    return {
        "lines": board.lines(rows, found, axes, (factor, f"{prefix}FLOP")),
        "heads": [(label, draw_scale(axes[probe], label)) for probe, label in labels.items()],
        "costs": board.COSTS,
        "kinds": {row.kind for row in rows if row.scores},
        "several_seeds": any(score.ci95 is not None for score in scores),
        "single": any(score.ci95 is None and score.half_width for score in scores),
    }


def _scatters(rows: Sequence[Row], probe: str, label: str) -> list[tuple[str, Markup]]:
    """Charts of score against cost, with the name and unit of the cost."""
    flops = {row.number: row.flops for row in rows if row.flops}
    seconds = {row.number: row.seconds for row in rows if row.seconds}
    factor, prefix = prefix_of(flops.values())
    length, unit = time_unit(seconds.values())
    charts = []
    for name, costs, per, word in (
        ("Training compute", flops, factor, f"{prefix}FLOP"),
        ("Training time", seconds, length, unit),
    ):
        chart = draw_costs(rows, probe, label, {number: cost / per for number, cost in costs.items()}, word)
        charts += [(f"{name}, {word}", chart)] if chart else []
    return charts


def _curves(rows: Sequence[Row]) -> list[tuple[Row, Markup, Markup, Markup]]:
    """For each trained row with metrics: its mark, its loss, its online probe (or nothing)."""
    trained = [row for row in rows if row.kind == "recipe"]
    losses = {row.number: found for row in trained if (found := read_curves(row, "loss"))}
    probed = {row.number: mean_curve(found) for row in trained if (found := read_curves(row, ONLINE))}
    every = [point for curves in losses.values() for curve in curves for point in curve]
    images = Axis(0.0, max((seen for seen, _ in every), default=1.0))
    scores = Axis.around(value for curve in probed.values() for _, value in curve)
    return [
        (
            row,
            swatch(row.number),
            draw_loss(row, losses[row.number], images),
            draw_probe(row, probed, images, scores, "online kNN top-1") if row.number in probed else Markup(""),
        )
        for row in trained
        if row.number in losses
    ]


def _health(rows: Sequence[Row], found: Findings) -> tuple[list[str], list[tuple[Row, Markup, list[str]]]]:
    """Heads and rows of the table of label-free figures."""
    told = [row for row in [*found.ranking, *rows] if row.health and row.kind == "recipe"]
    told = list({row.number: row for row in told}.values())
    keys = [key for key in HEALTH if any(key in row.health for row in told)]
    figures = {"effective_rank": ".1f", "code_accuracy": ".1f"}
    return [HEALTH[key] for key in keys], [
        (
            row,
            swatch(row.number),
            [f"{row.health[key]:{figures.get(key, '.2f')}}" if key in row.health else "" for key in keys],
        )
        for row in told
    ]


def _pictures(rows: Sequence[Row], found: Findings) -> list[tuple[Row, Markup, list[Picture]]]:
    """Sheets of each trained row that has a finished run, best first."""
    finished = [row for row in rows if row.kind == "recipe" and row.done and row.folders and row not in found.ranking]
    ranked = [row for row in found.ranking if row.folders]
    return [(row, swatch(row.number), draw_pictures(row)) for row in [*ranked, *finished]]


def _again(folder: Path, results: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The commands that train and score the first run once more, by itself; empty where there is none yet."""
    settings, run = results["settings"], next((row.seeds[0]["folder"] for row in rows if row.folders), None)
    if run is None:
        return ""
    plugins = [word for path in settings.get("plugins", ()) for word in ("--plugin", path)]
    trained = ["mimkit", "train", str(folder / run / "recipe.yaml"), "--out", "again", *plugins]
    options = [*settings.get("probe_options", ()), *plugins]
    scored = ["mimkit", "eval", "again", "--probe", ",".join(settings["probes"]), *options]
    return f"{shlex.join(trained)}\n{shlex.join(scored)}"


def _about(folder: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """Versions, hardware, data and dates, by their names; what is not known is left out."""
    environment, data = results.get("environment") or {}, results.get("data") or {}
    versions = {"mimkit": results.get("mimkit"), "Python": environment.get("python"), **environment.get("versions", {})}
    sizes = [
        f"{grouped(data[split])} {word}"
        for split, word in (("train", "to train"), ("test", "to test"))
        if data.get(split)
    ]
    processor = f"{environment.get('cpu_count')} CPU cores, {environment.get('threads')} threads"
    applies = results["settings"].get("applies") or {}
    given = [
        f"{text} ({', '.join(applies[text])})" if text in applies else text
        for text in results["settings"].get("overrides") or []
    ]
    told = {
        "Overrides": "; ".join(given),
        "Data": ", ".join([str(data["name"]), *sizes]) if data.get("name") else "",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Commit": environment.get("commit"),
        "Hardware": (environment.get("gpu") or processor) if environment else "",
        "System": environment.get("platform"),
        "Time": " to ".join(
            str(results[key])[:19].replace("T", " ") for key in ("started", "finished") if results.get(key)
        ),
        "Folder": str(folder.resolve()),
    }
    return {term: words for term, words in told.items() if words}
