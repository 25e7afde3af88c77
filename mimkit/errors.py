"""The one exception for a user's mistake: the command line prints its line and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What is wrong, where, and what would be right: one line per mistake."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'ratio'?"` for the known name nearest to `word`, or an empty string."""
    match = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""
