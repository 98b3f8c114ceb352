"""Many files, one after another: progress, failures that don't stop the run, a summary."""

import sys
import time
from collections.abc import Callable

from vidtok.cli.inputs import Job
from vidtok.cli.main import is_expected, one_line
from vidtok.cli.progress import Progress

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
