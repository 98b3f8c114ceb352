"""What is counted of a run over files, while it goes on and afterwards."""

import time
from typing import Any

from vidtok.extraction.record import Record
from vidtok.extraction.sources import WorkItem

STAGES = ("read", "infer", "write")


class RunStats:
    """Counts and failures of a run over files, while it goes on and afterwards. `str()` is a one-line summary.

    Attributes:
        total: files of the run. done, skipped: files so far; skipped ones were complete already.
        failures: (file, reason) of each that failed. damaged: (file, what it lost) of each that was kept all the same.
        frames: of what was done.
    """

    things = "files"

    def __init__(self, total: int):
        self.total = total
        self.done = self.skipped = self.frames = 0
        self.failures: list[tuple[Any, str]] = []
        self.damaged: list[tuple[Any, str]] = []
        self._start = time.perf_counter()
        self._end: float | None = None

    def finish(self) -> None:
        """Stop the clock."""
        self._end = time.perf_counter()

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def elapsed(self) -> float:
        """Seconds from the beginning to the end, or to now."""
        return (self._end or time.perf_counter()) - self._start

    @property
    def eta(self) -> float | None:
        """Seconds to the end, or None before the first file."""
        worked = self.done + self.failed
        return None if not worked else self.elapsed / worked * (self.total - worked - self.skipped)

    def counts(self) -> dict:
        """Return the counts so far, as JSON takes them: {"event": "progress", "total", "done", "skipped", "failed",
        "damaged", "frames", "seconds", "seconds_left" (or None)}."""
        left = None if self.eta is None else round(self.eta, 3)
        counts = {name: getattr(self, name) for name in ("total", "done", "skipped", "failed")}
        counts |= {"damaged": len(self.damaged), "frames": self.frames}
        return {"event": "progress"} | counts | {"seconds": round(self.elapsed, 3), "seconds_left": left}

    @property
    def speed(self) -> str:
        """Rates in words."""
        return f"{self.frames / self.elapsed:.0f} frames/s"

    @property
    def size(self) -> str:
        """Size of what was written, in words, or ""."""
        return ""

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.total} {self.things}, {self.frames} frames in {self.elapsed:.1f} s ({self.speed})"
            + (f", {self.size}" if self.size else "")
            + (f", {self.skipped} were complete" if self.skipped else "")
            + (f", {len(self.damaged)} damaged" if self.damaged else "")
            + (f", {self.failed} failed" if self.failures else "")
        )


class ExtractionStats(RunStats):
    """Counts, failures and times of an extraction.

    Attributes:
        records, tokens: of what was done. bytes: of the files that were completed.
        seconds: {"read": waited for the decoders, "infer": in the model, "write": finding and writing files}.
        agreement: of bf16 tokens with fp32 ones, see `vidtok.extraction.run.encode_files`, or None.
    """

    things = "videos"

    def __init__(self, total: int):
        super().__init__(total)
        self.records = self.tokens = self.bytes = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.agreement: object | None = None

    def add(self, item: WorkItem, records: list[Record]) -> None:
        """Count a video that is done."""
        self.done += 1
        if damage := records[0].meta.damage:
            self.damaged.append((item, damage))
        self.records += len(records)
        self.tokens += sum(record.features.size for record in records if record.meta.feature == "ids")

    @property
    def speed(self) -> str:
        """ "1.2 videos/s, 34 frames/s; read 10%, infer 85%, write 2%": rates, and shares of the time."""
        shares = ", ".join(f"{name} {self.seconds[name] / self.elapsed:.0%}" for name in STAGES)
        return f"{self.done / self.elapsed:.1f} videos/s, {super().speed}; {shares}"

    @property
    def size(self) -> str:
        """ "1.23 MB, 1.50 bytes per token", or "" where nothing was written."""
        per_token = f", {self.bytes / self.tokens:.2f} bytes per token" if self.tokens else ""
        return f"{self.bytes / 1e6:.3g} MB{per_token}" if self.bytes else ""
