"""A signal is a flag: the step ends, a checkpoint is written, the command leaves with 75."""

import signal
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """True once SIGTERM or Ctrl-C arrived while it is in use as a context; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._receive) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        for caught in CAUGHT:
            signal.signal(caught, signal.SIG_DFL)
