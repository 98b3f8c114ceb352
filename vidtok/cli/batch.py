"""Many files, one after another: progress, failures that don't stop the run, a summary."""

import sys
import time
from collections.abc import Callable

from vidtok.cli.inputs import Job
from vidtok.cli.main import is_expected, one_line

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
    with _Progress(len(jobs)) as progress:
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
                progress.print(f"vidtok: {_about(job, error)}")
            progress.file_done()
    seconds = time.perf_counter() - start
    speed = f"{progress.frames} frames in {seconds:.1f} s ({progress.frames / seconds:.0f} frames/s)"
    print(f"{done} {len(jobs) - failed} of {len(jobs)} files, {speed}{f', {failed} failed' if failed else ''}")
    return 1 if failed else 0


def _about(job: Job, error: Exception) -> str:
    text = one_line(error)
    return text if str(job.source) in text else f"{job.source}: {text}"


class _Progress:
    """A bar on stderr where that is a terminal."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.frames = 0
        self._start = time.perf_counter()
        console = Console(stderr=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files, {task.fields[speed]} frames/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, speed="-")

    def count(self, frames: int) -> None:
        self.frames += frames
        self._bar.update(self._task, speed=f"{self.frames / (time.perf_counter() - self._start):.0f}")

    def file_done(self) -> None:
        self._bar.advance(self._task)

    def print(self, line: str) -> None:
        print(line, file=sys.stderr)  # rich puts it above the bar

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
