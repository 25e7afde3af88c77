"""The report's sentences: the finding, the figures behind it, the budget, and what a reader must be warned of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimkit.compare.findings import LEVEL, Difference, Findings, cheapest, relative_cost
from mimkit.compare.report_rows import Row
from mimkit.compare.units import duration, grouped, plain, quantity

PROBES = {
    "knn": "kNN",
    "linear": "linear probe",
    "linear_lars": "linear probe (LARS)",
    "layers": "best layer",
    "attentive": "attentive probe",
    "attentive_sgd": "attentive probe (SGD)",
    "finetune": "fine-tuning",
    "segment": "segmentation",
}
METRICS = {"top1": "top-1", "miou": "mIoU"}
TIMES = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"


def probe_label(probe: str, rows: Sequence[Row]) -> str:
    """A probe and its metric: "kNN top-1"."""
    scores = (seed.get("scores", {}).get(probe, {}) for row in rows for seed in row.seeds)
    metric = next((score["metric"] for score in scores if "metric" in score), "")
    return f"{PROBES.get(probe, probe)} {METRICS.get(metric, metric)}".strip()


def headline(found: Findings, label: str) -> str:
    """The finding in one sentence: the best row, its interval, whether its lead is real, its price."""
    if not found.ranking:
        return "No recipe has a score yet."
    best = found.ranking[0]
    if found.lead is None:
        return f"{best.name} reaches {best.scores[found.probe]} % {label}; there is no other recipe to compare it with."
    lead = _lead_clause(found.lead, found.ranking[1].name)
    first = f"{best.name} is best with {best.scores[found.probe]} % {label}"
    return "; ".join([first, lead, *_cost_clause(found)]) + "."


def _lead_clause(lead: Difference, second: str) -> str:
    words = f"its lead of {_points(lead)} over {second}"
    if lead.p is None:
        return f"one seed cannot tell whether {words} is real"
    return f"{words} is real" if lead.apart else f"{words} may be chance (p = {lead.p:.2f})"


def _points(lead: Difference) -> str:
    return f"{lead.points:.{1 if lead.points >= 0.095 else 2}f} points"


def _cost_clause(found: Findings) -> list[str]:
    """The price: beside the cheapest row that may be as good; where there is none, beside the second."""
    best = found.ranking[0]
    cheap = cheapest([best, *found.rivals]) if found.rivals else found.ranking[1]
    if cheap is None:
        return []
    if cheap is best:
        return ["none that may be as good is cheaper"]
    ratio = relative_cost(best, cheap)
    if ratio is None:
        return []
    who = f"{cheap.name}, which may be as good" if found.rivals else cheap.name
    return [f"it took {plain(ratio[0])}{TIMES} the {ratio[1]} of {who}"]


def facts(found: Findings, label: str) -> list[tuple[str, str, str]]:
    """The figures behind the sentence: (what, figure, rule or detail)."""
    if not found.ranking:
        return []
    best = found.ranking[0]
    score = best.scores[found.probe]
    told = [(f"Best {label}", f"{score} %", f"{best.name}; {interval_rule(len(score.values), score.half_width)}")]
    if found.lead is not None:
        told.append(("Lead over the second", _lead_figure(found.lead), _lead_rule(found)))
    if best.flops or best.seconds:
        figures = [quantity(best.flops, "FLOP")] if best.flops else []
        figures += [duration(best.seconds)] if best.seconds else []
        told.append(("Its price", " · ".join(figures), _price_rule(found)))
    return told


def interval_rule(values: int, half_width: float | None) -> str:
    """What an interval means."""
    if half_width is None:
        return "one seed, no interval"
    if values > 1:
        return f"95 % interval of the mean of {values} seeds (Student's t)"
    return "one seed; 95 % by the number of test images alone"


def _lead_figure(lead: Difference) -> str:
    word = "one seed: cannot tell" if lead.p is None else "real" if lead.apart else "not shown"
    return f"{_points(lead)}, {word}"


def _lead_rule(found: Findings) -> str:
    lead = found.lead
    assert lead is not None
    second = found.ranking[1]
    beside = f"{second.name}: {second.scores[found.probe]} %; "
    if lead.p is None:
        size = "more than" if lead.apart else "within"
        return f"{beside}{size} what the choice of test images makes (95 %); other seeds may differ more"
    p = f"p = {lead.p:.2g}" if lead.p >= 0.001 else "p < 0.001"
    return f"{beside}Welch's t-test on the seeds' values, {p} (real below {LEVEL})"


def _price_rule(found: Findings) -> str:
    """What the others cost beside the best one: those that may be as good, or else the second."""
    best, others = found.ranking[0], found.rivals or found.ranking[1:2]
    told = [(other.name, relative_cost(other, best)) for other in others]
    words = [f"{name} took {plain(ratio[0])}{TIMES} that {ratio[1]}" for name, ratio in told if ratio]
    return ("may be as good: " if found.rivals and words else "") + ", ".join(words)


def budget(results: Mapping[str, Any]) -> str:
    """What each recipe was given, so that scores can be compared."""
    settings, data = results["settings"], results.get("data") or {}
    amount, seeds = settings.get("budget"), settings.get("seeds") or []
    images = f" images of {Path(str(data['name'])).name}" if data.get("name") else " images"
    given = {
        "images": f"saw {grouped(amount or 0)}{images}, in the same order",
        "seconds": f"trained for {duration(amount or 0)} on{images}",
        "flops": f"spent {quantity(amount or 0, 'FLOP')} on{images}",
    }.get(settings.get("equal", ""))
    if amount is None or given is None:
        given = f"trained as long as it says itself, on{images}"
    times = f"{len(seeds)} seeds" if len(seeds) != 1 else "one seed"
    return f"Each recipe {given}; {times} each."


def warnings(results: Mapping[str, Any], rows: Sequence[Row], found: Findings) -> list[str]:
    """The bench's notes, what failed and why, and what did not learn."""
    told = list(results.get("notes") or [])
    for row in rows:
        if row.status in ("failed", "partial"):
            errors = [row.error] if row.error else [seed["error"] for seed in row.seeds if seed.get("error")]
            some = "failed" if row.status == "failed" else f"has {row.done} of {len(row.seeds)} seeds"
            told.append(f"{row.name} {some}: {'; '.join(dict.fromkeys(errors)) or 'no reason was given'}")
    if found.idle:
        names = ", ".join(row.name for row in found.idle)
        told.append(f"not shown to be better than the untrained encoder: {names}")
    return told


def progress(results: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """How far the bench is; empty when it has ended."""
    if results.get("finished"):
        return ""
    runs = [seed for row in rows for seed in row.seeds]
    done = sum(seed["status"] == "done" for seed in runs)
    at_work = [f"{row.name}, seed {seed['seed']}" for row in rows for seed in row.seeds if seed["status"] == "running"]
    now = f"; at work: {'; '.join(at_work)}" if at_work else ""
    return f"The bench is not finished: {done} of {len(runs)} runs are done{now}."
