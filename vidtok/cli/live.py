"""The line that says how a run is going, on stderr, where that is a terminal."""

from vidtok.extract.meter import Meter


class Live:
    """Shows a `Meter`; print() goes on working meanwhile."""

    def __init__(self, meter: Meter):
        from rich import progress
        from rich.console import Console

        self._meter = meter
        console = Console(stderr=True)
        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[text]}"))
        self._bar = progress.Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=meter.total, text="videos")

    def update(self) -> None:
        meter = self._meter
        left = "" if meter.eta is None else f", {meter.eta / 60:.0f} min left" if meter.eta > 90 else ", a minute left"
        failed = f", {meter.failed} failed" if meter.failed else ""
        text = f"videos, {meter.speed()}; {meter.shares()}{left}{failed}"
        self._bar.update(self._task, completed=meter.done + meter.skipped + meter.failed, text=text)

    def __enter__(self) -> "Live":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
