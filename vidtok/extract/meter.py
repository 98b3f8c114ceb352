"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "infer", "write")


class Meter:
    """Attributes:
    total: videos of the run. done, skipped, failed: videos so far; skipped ones were complete already.
    frames, records, tokens: of what was done. bytes: of the files that were completed.
    seconds: {"read": waited for the decoders, "infer": in the model, "write": finding and writing files}.
    """

    def __init__(self, total: int):
        self.total = total
        self.done = self.skipped = self.failed = self.frames = self.records = self.tokens = self.bytes = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    @property
    def eta(self) -> float | None:
        """Seconds, or None before the first video."""
        worked = self.done + self.failed
        return None if not worked else self.elapsed / worked * (self.total - worked - self.skipped)

    def shares(self) -> str:
        """ "read 10 %, infer 85 %, write 2 %" of the time."""
        return ", ".join(f"{name} {self.seconds[name] / self.elapsed:.0%}" for name in STAGES)

    def size(self) -> str:
        """ "1.23 MB, 1.50 bytes per token", or "" where nothing was written."""
        per_token = f", {self.bytes / self.tokens:.2f} bytes per token" if self.tokens else ""
        return f"{self.bytes / 1e6:.3g} MB{per_token}" if self.bytes else ""

    def speed(self) -> str:
        return f"{self.done / self.elapsed:.1f} videos/s, {self.frames / self.elapsed:.0f} frames/s"
