"""A line for each piece of work, and when the whole will be done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mimkit.compare.units import duration


class Teller:
    """Says what is at work, how long it took, and how long the rest will take.

    left: how many jobs there are to do. Those that were done before take no time and do not count.
    """

    def __init__(self) -> None:
        self.left, self.done = 0, 0
        self.began = time.monotonic()
        self.worked = False

    @contextmanager
    def job(self) -> Iterator[None]:
        """A job, which consists of pieces of work."""
        self.worked = False
        try:
            yield
        finally:
            self.left -= 1
            self.done += self.worked

    @contextmanager
    def unit(self, what: str) -> Iterator[None]:
        """A piece of work: said before it, and after it how long it took."""
        self.worked = True
        began = time.monotonic()
        so_far = began - self.began
        left = f", about {duration(so_far / self.done * self.left)} left" if self.done else ""
        print(f"[{duration(so_far)}{left}] {what} … ", end="", flush=True)
        try:
            yield
        except BaseException:
            print("not done", flush=True)
            raise
        print(duration(time.monotonic() - began), flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        print(text, flush=True)
