"""Numbers as people read them: 1.02 PFLOP, 50 000 images, 2 min 11 s."""

from collections.abc import Iterable

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SPACE = "\N{NARROW NO-BREAK SPACE}"


def grouped(number: float) -> str:
    """A whole number, its digits in groups of three."""
    return f"{number:,.0f}".replace(",", SPACE)


def prefix_of(values: Iterable[float]) -> tuple[float, str]:
    """The factor 1000^n and its SI prefix in which the largest value has one to three digits before the point."""
    most, power = max(values, default=0.0), 0
    while most >= 999.5 * 1000**power and power < len(PREFIXES) - 1:
        power += 1
    return 1000.0**power, PREFIXES[power]


def quantity(value: float, unit: str) -> str:
    """A value with an SI prefix, three digits: 1.02 PFLOP."""
    factor, prefix = prefix_of([value])
    return f"{plain(value / factor)} {prefix}{unit}".rstrip()


def short(value: float) -> str:
    """A round number with an SI prefix, as it stands at an axis: 50 k."""
    factor, prefix = prefix_of([value])
    return f"{value / factor:g} {prefix}".rstrip()


def plain(value: float) -> str:
    """Three digits that count, never as a power of ten; at most three behind the point."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.0995 or value == 0 else 3
    return f"{value:.{digits}f}"


def millions(count: float) -> str:
    """A number of parameters: 0.81 M, 304 M."""
    return f"{plain(count / 1e6)} M"


def duration(seconds: float) -> str:
    """Seconds; from two minutes on minutes and seconds, from two hours on hours and minutes."""
    if seconds < 120:
        return f"{plain(seconds) if seconds < 10 else round(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def time_unit(seconds: Iterable[float]) -> tuple[float, str]:
    """The seconds of a unit, and its name, in which the largest value is at least two."""
    most = max(seconds, default=0.0)
    return (1.0, "s") if most < 120 else (60.0, "min") if most < 7200 else (3600.0, "h")
