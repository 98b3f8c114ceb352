"""A progress bar on stderr, where that is a terminal."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
