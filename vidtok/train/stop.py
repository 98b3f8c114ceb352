"""SIGTERM and Ctrl-C as a wish to stop at the next step."""

import signal


class StopSignal:
    """A context in which the two signals only set `asked`; the handlers from before come back after it."""

    def __init__(self):
        self.asked = False

    def _ask(self, *_) -> None:
        self.asked = True

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
