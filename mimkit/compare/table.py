"""The table of a bench: the best row first, failed ones last with their reason; as aligned text and as Markdown."""

from collections.abc import Sequence

from mimkit.compare.report_rows import Row
from mimkit.compare.units import duration, grouped, millions, quantity

COLUMNS = ("images/s", "training", "time", "memory", "parameters")


def table(rows: Sequence[Row], probes: Sequence[str]) -> list[list[str]]:
    """The heading, then a line for each row that is done at least in part, then one for each that failed."""
    scored = [row for row in rows if probes[0] in row.scores]
    scored.sort(key=lambda row: -row.scores[probes[0]].mean)
    failed = [row for row in rows if row.status == "failed"]
    lines = [
        [row.name, *(str(row.scores[p]) if p in row.scores else "" for p in probes), *_costs(row)] for row in scored
    ]
    blank = [""] * (len(probes) + len(COLUMNS) - 1)
    return [["row", *probes, *COLUMNS], *lines, *([row.name, f"failed: {row.error}", *blank] for row in failed)]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The table as text whose columns stand below each other; a failed row's reason takes the rest of its line."""
    whole = [line for line in lines if not line[1].startswith("failed: ")]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    widths[0] = max(len(line[0]) for line in lines)
    text = [
        "  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:]))]) for line in lines
    ]
    return "\n".join(line.rstrip() for line in text) + "\n"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table as Markdown."""
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    text.insert(1, "|---" + "|--:" * (len(lines[0]) - 1) + "|")
    return "\n".join(text) + "\n"


def _costs(row: Row) -> list[str]:
    """Speed, operations, time, memory and size, the tokenizer's training included; empty where not known."""
    means = row.means
    return [
        grouped(means["images_per_s"]) if "images_per_s" in means else "",
        quantity(row.flops, "FLOP") if row.flops else "",
        duration(row.seconds) if row.seconds else "",
        quantity(means["peak_memory"], "B") if "peak_memory" in means else "",
        millions(means["parameters"]) if "parameters" in means else "",
    ]
