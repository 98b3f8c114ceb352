"""A progress bar on stderr, where that is a terminal.

Many files, one after another: progress, failures that don't stop the run, a summary.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from vidtok.errors import is_expected, one_line
from vidtok.files import Job

Item = TypeVar("Item")


class Progress:
    """`total` things ("files") of many frames each; print() goes on working while it is shown.

    Attributes:
        frames: counted so far.
    """

    def __init__(self, total: int, things: str):
        from rich import progress
        from rich.console import Console

        self.frames = 0
        self._start = time.perf_counter()
        console = Console(stderr=True)
        columns = (
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn(things + "{task.fields[speed]}"),
            progress.TimeRemainingColumn(),
        )
        self._bar = progress.Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, speed="")

    def count(self, frames: int) -> None:
        self.frames += frames
        speed = self.frames / (time.perf_counter() - self._start)
        self._bar.update(self._task, speed=f", {speed:.0f} frames/s")

    def count_steps(self, done: int, total: int) -> None:
        """Steps of the thing at hand."""
        self._bar.update(self._task, speed=f", step {done} of {total}")

    def advance(self) -> None:
        self._bar.advance(self._task)

    def reach(self, done: int) -> None:
        """So many are done."""
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


def track(items: Iterable[Item], total: int, things: str) -> Iterator[Item]:
    """`items`, with a bar."""
    with Progress(total, things) as progress:
        for item in items:
            yield item
            progress.advance()


Count = Callable[[int], None]  # called with a number of frames that are done


def run_jobs(jobs: list[Job], work: Callable[[Job, Count], None], *, force: bool, done: str) -> int:
    """Runs `work` on every job and returns the exit status: 1 if any failed.

    Args:
        work: writes job.target, whose folder exists; what it raises fails this job only, if `is_expected`.
        force: overwrite targets that exist; otherwise each is a failure.
        done: what the summary calls a job that went well, "encoded".
    """
    failed = 0
    start = time.perf_counter()
    with Progress(len(jobs), "files") as progress:
        for job in jobs:
            try:
                if job.target.exists() and not force:
                    raise FileExistsError(f"{job.target} exists: --force overwrites it")
                job.target.parent.mkdir(parents=True, exist_ok=True)
                work(job, progress.count)
            except Exception as error:
                if not is_expected(error):
                    raise
                failed += 1
                print(f"vidtok: {_about(job, error)}", file=sys.stderr)  # above the bar, where there is one
            progress.advance()
    seconds = time.perf_counter() - start
    speed = f"{progress.frames} frames in {seconds:.1f} s ({progress.frames / seconds:.0f} frames/s)"
    print(f"{done} {len(jobs) - failed} of {len(jobs)} files, {speed}{f', {failed} failed' if failed else ''}")
    return 1 if failed else 0


def _about(job: Job, error: Exception) -> str:
    text = one_line(error)
    return text if str(job.source) in text else f"{job.source}: {text}"
