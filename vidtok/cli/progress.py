"""Helpers of commands: progress bars on stderr, and errors for flags that have no effect."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from vidtok.errors import UserError
from vidtok.names import printable
from vidtok.remote import as_text

if TYPE_CHECKING:
    from vidtok.extraction.stats import RunLog, RunStats

Item = TypeVar("Item")


class Progress:
    """Progress bar over `total` items such as clips (None: set by `reach`). print() works while it is shown."""

    def __init__(self, total: int | None, things: str):
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        text = progress.TextColumn(things + "{task.fields[step]}")
        columns = progress.BarColumn(), progress.MofNCompleteColumn(), text, progress.TimeRemainingColumn()
        self._bar = progress.Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, step="")

    def count_steps(self, done: int, total: int) -> None:
        """Show how many steps of the current item are done."""
        self._bar.update(self._task, step=f", step {done} of {total}")

    def advance(self, count: int = 1) -> None:
        self._bar.advance(self._task, count)

    def reach(self, done: int, total: int | None = None) -> None:
        """Show `done` of `total` items as done."""
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


def track(items: Iterable[Item], total: int, things: str) -> Iterator[Item]:
    """Yield the items with a progress bar."""
    with Progress(total, things) as progress:
        for item in items:
            yield item
            progress.advance()


class RunProgress:
    """Progress bar of a run over files that also prints failures, or a log of both; fed by `update`."""

    def __init__(self, things: str, log: "RunLog | None" = None):
        from rich import progress
        from rich.console import Console

        self._things, self._told, self._log = things, [0, 0], log
        console = Console(stderr=True)
        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[text]}"))
        self._bar = progress.Progress(*columns, console=console, disable=log is not None or not console.is_terminal)
        self._task = self._bar.add_task("", total=None, text=things)

    def update(self, stats) -> None:
        """Show the counts so far, a `vidtok.extraction.stats.RunStats`, and print new failures."""
        self.tell(stats)
        left = "" if stats.eta is None else f", {stats.eta / 60:.0f} min left" if stats.eta > 90 else ", a minute left"
        text = f"{self._things}, {stats.speed}{left}" + (f", {stats.failed} failed" if stats.failures else "")
        self._bar.update(self._task, total=stats.total, completed=stats.done + stats.skipped + stats.failed, text=text)

    def tell(self, stats) -> None:
        """Print or log the failures and damaged files that have not been printed yet."""
        for i, (kind, found) in enumerate((("failed", stats.failures), ("damaged", stats.damaged))):
            for source, why in found[self._told[i] :]:
                source, why = printable(as_text(str(source))), printable(why)
                if self._log is not None:
                    self._log.write({"event": kind, "file": source, "reason": why})
                    continue
                print(f"vidtok: {why if source in why else f'{source}: {why}'}", file=sys.stderr)  # above the bar
            self._told[i] = len(found)
        if self._log is not None:
            self._log.progress(stats)

    def __enter__(self) -> "RunProgress":
        # Clusters send SIGTERM before they take a machine away. It ends a run as Ctrl-C does: finished files are kept.
        self._sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
        signal.signal(signal.SIGTERM, self._sigterm)


def validate_flags(flags) -> None:
    """Raise UserError for the first flag without effect. flags: (flag, whether it has no effect, why)."""
    for flag, idle, why in flags:
        if idle:
            raise UserError(f"{flag} {why}")


def show_run(work: Callable[..., "RunStats"], done: str, things: str = "files", log: "RunLog | None" = None):
    """Run a function with a progress bar; print failures and a summary, and return its `RunStats`.

    work: called as work(progress=...). done: verb of the summary, such as "encoded".
    """
    with log or nullcontext(), RunProgress(things, log) as bar:
        stats = work(progress=bar.update)
        bar.tell(stats)
    print(f"{done} {stats}")
    return stats
