"""Statistics of a run over files, during it and afterwards, its log in JSON lines, and forecasts of a run."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TextIO

from vidtok.errors import one_line
from vidtok.extraction.record import Record
from vidtok.extraction.sources import WorkItem
from vidtok.names import hash_name

STAGES = ("read", "infer", "write")


class RunStats:
    """Counts and failures of a run over files, during it and afterwards. `str()` is a one-line summary.

    Attributes:
        total: number of files. done, skipped: number so far; skipped files were complete before.
        failures: (file, reason) of each file that failed. damaged: (file, damage) of each that was kept nevertheless.
        frames: number of frames of the files that are done.
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
        """Seconds from the start to the end, or to now."""
        return (self._end or time.perf_counter()) - self._start

    @property
    def eta(self) -> float | None:
        """Estimated seconds to the end; None before the first file."""
        worked = self.done + self.failed
        return None if not worked else self.elapsed / worked * (self.total - worked - self.skipped)

    def counts(self) -> dict:
        """Return the counts so far as a dict for JSON.

        {"event": "progress", "total", "done", "skipped", "failed", "damaged", "frames", "seconds",
        "seconds_left" (or None), "per_second" (files done), "frames_per_second"}
        """
        left, elapsed = self.eta, self.elapsed
        counts = {name: getattr(self, name) for name in ("total", "done", "skipped", "failed")}
        counts |= {"damaged": len(self.damaged), "frames": self.frames}
        counts |= {"seconds": round(elapsed, 3), "seconds_left": None if left is None else round(left, 3)}
        rates = {"per_second": self.done, "frames_per_second": self.frames}
        return {"event": "progress"} | counts | {name: round(count / elapsed, 3) for name, count in rates.items()}

    @property
    def speed(self) -> str:
        """Rates as text."""
        return f"{self.frames / self.elapsed:.0f} frames/s"

    @property
    def size(self) -> str:
        """Size of the written files as text, or ""."""
        return ""

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.total} {self.things}, {self.frames} frames in {self.elapsed:.1f} s ({self.speed})"
            + (f", {self.size}" if self.size else "")
            + (f", {self.skipped} were complete" if self.skipped else "")
            + (f", {len(self.damaged)} damaged" if self.damaged else "")
            + (f", {self.failed} failed" if self.failures else "")
        )


EVERY = 10.0  # seconds between two lines of progress


class RunLog:
    """Events of a run as JSON lines, for programs that watch many runs.

        {"event": "start", "time", "command", "settings", "settings_hash"}
        {"event": "progress", ...}                              every `EVERY` seconds, see `RunStats.counts`
        {"event": "failed" or "damaged", "file", "reason"}      of each such file
        {"event": "end", "time", "status", "error", ...}        with the counts, on leaving the context

    Times are in UTC, ISO 8601. "status" is the exit status of the command; "error" is None, or says why the run ended
    early.

    Args:
        command: such as "extract". settings: its arguments. Equal ones have an equal "settings_hash".
        stream: text stream to write to.
    """

    def __init__(self, command: str, settings: Mapping[str, Any], stream: TextIO):
        self._stream, self._last, self._stats = stream, -math.inf, RunStats(0)
        text = json.dumps(settings, sort_keys=True, default=str)
        described = {"command": command, "settings": json.loads(text), "settings_hash": hash_name(text, 16)}
        self.write({"event": "start", "time": _now()} | described)

    def write(self, event: dict) -> None:
        print(json.dumps(event), file=self._stream, flush=True)

    def progress(self, stats: RunStats) -> None:
        """Write the counts so far, if it is time for it or all files are done."""
        self._stats, now = stats, time.monotonic()
        complete = stats.done + stats.skipped + stats.failed == stats.total
        if now >= self._last + EVERY or (complete and self._last < math.inf):
            self._last = math.inf if complete else now
            self.write(stats.counts())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        status = int(self._stats.failed > 0) if error is None else 130 if isinstance(error, KeyboardInterrupt) else 1
        why = None if error is None else one_line(error)
        self.write(self._stats.counts() | {"event": "end", "time": _now(), "status": status, "error": why})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one video.

    Attributes:
        frames: of all records. records, tokens: number of them. damage: as text, see `RecordMeta`.
    """

    frames: int
    records: int
    tokens: int
    damage: str

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Counts":
        frames = tokens = 0
        for record in records:  # once, since they may be read from a file
            frames += record.meta.frames
            tokens += record.features.size if record.meta.feature == "ids" else 0
        return cls(frames=frames, records=len(records), tokens=tokens, damage=records[0].meta.damage)


class ExtractionStats(RunStats):
    """Counts, failures and times of an extraction.

    Attributes:
        records, tokens: number in the videos that are done. bytes: size of the completed files.
        seconds: time by stage, {"read": waiting for the decoders, "infer": in the model, "write": finding and writing
            files}.
        agreement: of bf16 tokens with fp32 tokens, see `vidtok.extraction.run.encode_files`, or None.
    """

    things = "videos"

    def __init__(self, total: int):
        super().__init__(total)
        self.records = self.tokens = self.bytes = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.agreement: object | None = None

    def add(self, item: WorkItem, records: "Sequence[Record] | Counts") -> None:
        """Count a video whose records are stored."""
        counts = records if isinstance(records, Counts) else Counts.of(records)
        self.done += 1
        if counts.damage:
            self.damaged.append((item, counts.damage))
        self.records += counts.records
        self.tokens += counts.tokens

    @property
    def speed(self) -> str:
        """Rates and shares of the time, as in "1.2 videos/s, 34 frames/s; read 10%, infer 85%, write 2%"."""
        shares = ", ".join(f"{name} {self.seconds[name] / self.elapsed:.0%}" for name in STAGES)
        return f"{self.done / self.elapsed:.1f} videos/s, {super().speed}; {shares}"

    @property
    def size(self) -> str:
        """Size as in "1.23 MB, 1.50 bytes per token"; "" if nothing was written."""
        per_token = f", {self.bytes / self.tokens:.2f} bytes per token" if self.tokens else ""
        return f"{self.bytes / 1e6:.3g} MB{per_token}" if self.bytes else ""


@dataclass
class Forecast:
    """Forecast of an extraction, see `vidtok.extraction.run.dry_run`.

    Attributes:
        videos: number of all videos. complete: number of those that would be skipped.
        failures: (video, reason) of each that can't be opened, or whose existing features are of another video.
        seconds: duration of the videos to extract. frames, records: number that would be coded.
        bytes: size of the files that would be written. run_seconds: time that the run would take. Both are
            extrapolated from the first `measured` videos; None if there are none to extract.
        device: device of that measurement.
    """

    videos: int
    complete: int = 0
    failures: list[tuple[WorkItem, str]] = field(default_factory=list)
    seconds: float = 0.0
    frames: int = 0
    records: int = 0
    bytes: float | None = None
    run_seconds: float | None = None
    measured: int = 0
    device: str = ""

    @property
    def todo(self) -> int:
        """Number of videos that would be extracted."""
        return self.videos - self.complete - len(self.failures)

    def rows(self) -> dict[str, str]:
        """Return the numbers as text, by name."""
        rows = {
            "videos": f"{self.videos}, {self.todo} to do",
            "complete": f"{self.complete}, would be skipped",
            "would fail": f"{len(self.failures)}",
            "duration": f"{_duration(self.seconds)} to do",
            "frames": f"{self.frames} to code, {self.records} records",
        }
        if self.bytes is not None and self.run_seconds is not None:
            basis = f"measured on {self.measured} videos"
            size = f"{self.bytes / 1e9:.3g} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.3g} MB"
            rows["output"] = f"{size}, {basis}"
            rows["time"] = f"{_duration(self.run_seconds)} on this machine ({self.device}), {basis}"
        return rows


@dataclass(frozen=True)
class Speeds:
    """Speeds of one round in frames per second: decoding alone, the model alone, and both together with writing."""

    decode: float
    model: float
    together: float

    @property
    def of_serial(self) -> float:
        """Ratio to the speed of running one after the other, 1 / (1 / decode + 1 / model); above 1 if they overlap."""
        return self.together * (1 / self.decode + 1 / self.model)

    @property
    def of_slower(self) -> float:
        """Ratio to the speed of the slower stage."""
        return self.together / min(self.decode, self.model)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} hours" if seconds >= 600 else f"{seconds:.1f} s"


def describe_speeds(speeds: dict) -> dict[str, str]:
    """Return the result of `vidtok.extraction.run.measure` as text, by name."""
    rounds, processes = speeds["rounds"], speeds["decode_processes"]
    median = sorted(rounds, key=lambda one: one.of_serial)[len(rounds) // 2]
    decoding = f"{processes} decode processes" if processes else "decoding in between"
    cpus = f"{speeds['cpus']} CPUs, {speeds['threads']} threads for the model"
    return {
        "frames": f"{speeds['frames']}, of each video the first {speeds['max_frames']}",
        "machine": f"{speeds['device']}; {cpus}, {decoding}",
        "decode": f"{median.decode:.0f} frames/s",
        "model": f"{median.model:.0f} frames/s, batches of {speeds['batch']}",
        "together": f"{median.together:.0f} frames/s, files written",
        "of 1/(1/decode + 1/model)": f"{median.of_serial:.1%}, rounds {_percent(s.of_serial for s in rounds)}",
        "of the slower stage": f"{median.of_slower:.1%}, rounds {_percent(s.of_slower for s in rounds)}",
    }


def _percent(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)
