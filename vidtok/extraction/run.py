"""What `extract` and `encode` have in common: from flags to a run, and what it prints.

The line that says how a run is going, on stderr, where that is a terminal.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from vidtok.cli import common
from vidtok.cli.common import print_rows
from vidtok.errors import UserError
from vidtok.extraction.decoding import Decoders, ReadConfig
from vidtok.extraction.engine import extract, measure, reason, run
from vidtok.extraction.model import FeatureModel
from vidtok.extraction.npz import read_npz, write_npz
from vidtok.extraction.output import ExtractionStats, Output, another, make_settings
from vidtok.extraction.record import describe, differences, entry_of, settings_of
from vidtok.extraction.sources import Clips, WorkItem


class Live:
    """Shows a `ExtractionStats`; print() goes on working meanwhile."""

    def __init__(self, stats: ExtractionStats):
        from rich import progress
        from rich.console import Console

        self._stats = stats
        console = Console(stderr=True)
        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[text]}"))
        self._bar = progress.Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=stats.total, text="videos")

    def update(self) -> None:
        stats = self._stats
        left = "" if stats.eta is None else f", {stats.eta / 60:.0f} min left" if stats.eta > 90 else ", a minute left"
        failed = f", {stats.failed} failed" if stats.failed else ""
        text = f"videos, {stats.speed()}; {stats.shares()}{left}{failed}"
        self._bar.update(self._task, completed=stats.done + stats.skipped + stats.failed, text=text)

    def __enter__(self) -> "Live":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


MEASURED = 150  # frames of a video, where speeds are measured
FEW = 8  # videos for which starting decode processes takes longer than it saves


class Extraction:
    """items: what to do. clips: of each, or None, whole videos. The rest is in args, see `vidtok.cli.extract`."""

    def __init__(self, args: argparse.Namespace, items: list[WorkItem], clips: Clips | None = None):
        self.items, self.args = items, args
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        tokenizer = common.load_tokenizer(args)
        self.tokenizer = tokenizer
        head = None if args.head is None else load_head(args.head, tokenizer)
        if head is not None and head.config.protocol is not None:
            clips = follow(head.config.protocol, args, clips)
        requested = {
            "head": None if head is None else f"{head.config.name}, {head.weight_hash}",
            "pool": args.pool,
            "resize": args.size,
            "crop": args.crop,
            "resample": None if clips else args.fps,
            "max_frames": args.max_frames,
            "sampler": None if clips is None else str(clips),
            "tile": args.tile,
        }
        self.settings = make_settings(tokenizer, args.features, args.precision, args.dtype, **requested)
        max_frames = args.max_frames
        if args.measure and clips is None:  # pieces are held in memory
            max_frames = min(max_frames or MEASURED, MEASURED)
        self.reading = ReadConfig(tokenizer.stride, args.size, args.crop, args.fps, max_frames, clips)
        batch = args.batch or (1 if tokenizer.device.type == "cpu" else 8)
        self.model = FeatureModel(tokenizer, self.settings, batch, head)
        self.workers = default_workers(len(items)) if args.workers is None else args.workers
        if self.workers < 0:
            raise UserError(f"{self.workers} workers are fewer than none")
        self.decoders = partial(Decoders, self.reading, self.workers, args.time_limit)

    def run(self, output: str | Path, container: str, done: str, force: bool = False) -> int:
        """Fills the folder; prints failures and a summary; returns the exit status. force: do what is there again."""
        with self.decoders() as decoders:
            stats = ExtractionStats(len(self.items))
            folder = Output(output, self.settings, container, self.items, stats, force)
            with Live(stats) as live, _terminable():
                run(folder, partial(extract, decoders=decoders, model=self.model, stats=stats), live.update)
        return _summary(done, stats, folder.errors)

    def run_on_ray(self, output: str | Path, container: str, done: str) -> int:
        """`run`, with the model and the decoders in actors of a Ray cluster."""
        try:
            from vidtok.extraction.ray_engine import RayExtractor, connect, share_cluster
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'vidtok[ray]'") from error

        connect(self.args.ray_address)
        share = share_cluster(len(self.items), self.args.actors, self.args.workers, self.args.threads)
        self.model.batch = self.args.batch or (8 if share.gpus else 1)
        stats = ExtractionStats(len(self.items))
        folder = Output(output, self.settings, container, self.items, stats)
        extractor = RayExtractor(self.model, self.reading, share, self.args.time_limit, stats)
        with extractor, Live(stats) as live, _terminable():
            run(folder, extractor.extract, live.update)
        return _summary(done, stats, folder.errors)

    def run_one(self, path: Path, force: bool, done: str) -> int:
        """The same for one video and one file, .npz, by itself."""
        stats, (item,) = ExtractionStats(1), self.items
        if path.exists() and not force:
            there = read_npz(path)[0]
            if other := differences(self.settings, settings_of(describe(there))):
                raise UserError(f"{path} is of other settings: {other}. --force overwrites it")
            if why := another(item, entry_of(describe(there))):
                raise UserError(f"{path}: {why}, or --force")
            stats.skipped = 1
            return _summary(done, stats, [])
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting, errors = [item], []
        with self.decoders() as decoders:
            for _, result in extract(lambda: waiting.pop() if waiting else None, decoders, self.model, stats):
                if isinstance(result, Exception):
                    stats.failed = 1
                    errors.append((item, reason(result)))
                else:
                    with stats.stage("write"):
                        write_npz(path, result)
                    stats.done = 1
        return _summary(done, stats, errors)

    def measure(self, container: str) -> int:
        """Prints the speeds of decoding, of the model and of both, and what share of the possible that is."""
        with self.decoders() as decoders:
            frames, rounds = measure(self.items, decoders, self.model, container)
        median = sorted(rounds, key=lambda speeds: speeds.of_serial)[len(rounds) // 2]
        cpus, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        how = f"{decoders.slots} decode processes" if self.workers else "decoding in between"
        print_rows(
            {
                "frames": f"{frames}, of each video the first {self.reading.max_frames}",
                "machine": f"{self.model.tokenizer.device}; {cpus} CPUs, {threads} threads for the model, {how}",
                "decode": f"{median.decode:.0f} frames/s",
                "model": f"{median.model:.0f} frames/s, batches of {self.model.batch}",
                "together": f"{median.together:.0f} frames/s, files written",
                "of 1/(1/decode + 1/model)": f"{median.of_serial:.1%}, rounds {_percent(s.of_serial for s in rounds)}",
                "of the slower stage": f"{median.of_slower:.1%}, rounds {_percent(s.of_slower for s in rounds)}",
            }
        )
        return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which clusters send before they take a machine away, ends a run as Ctrl-C does: what is done is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _percent(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


def _summary(done: str, stats: ExtractionStats, errors: list[tuple[WorkItem, str]]) -> int:
    for item, why in errors:
        print(f"vidtok: {item}: {why}", file=sys.stderr)
    print(
        f"{done} {stats.done} of {stats.total} videos, {stats.frames} frames in {stats.elapsed:.1f} s "
        f"({stats.speed()}; {stats.shares()})"
        + (f", {stats.size()}" if stats.bytes else "")
        + (f", {stats.skipped} were complete" if stats.skipped else "")
        + (f", {stats.failed} failed" if stats.failed else "")
    )
    return 1 if stats.failed else 0


def load_head(name: str, tokenizer):
    """A trained head. Raises ValueError for one of another tokenizer."""
    from vidtok.heads import Head

    head = Head.from_pretrained(name, tokenizer.device)
    head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
    return head


def follow(protocol: dict, args: argparse.Namespace, clips: Clips | None) -> Clips:
    """The clips, size and crop that a head was trained for (`HeadConfig.protocol`), where no others are asked for.

    Raises ValueError for a head that sees several clips at once, or crops of a larger picture."""
    if protocol.get("joined") or protocol.get("resize", protocol["size"]) != protocol["size"]:
        raise ValueError("no embeddings of heads that see several clips at once, or crops of a larger picture")
    args.size = args.size or protocol["size"]
    args.crop = args.crop or ("three" if protocol["crops"] == 3 else "centre")
    if clips is not None:
        return clips
    fps, stride = protocol.get("fps"), protocol.get("stride")
    name = "uniform" if fps is None and stride is None else "dense"
    return Clips(name, protocol["clips"], protocol["frames"], stride or 1, fps)


def default_workers(videos: int) -> int:
    """Decode processes: half of the CPUs, for the model needs the others; none for a few videos."""
    return 0 if videos < FEW else max(1, len(os.sched_getaffinity(0)) // 2)


def plan(args: argparse.Namespace) -> list:
    """The videos of all sources, in order."""
    from vidtok.extraction.sources import is_dataset, plan_dataset, plan_files, validate_unique
    from vidtok.files import find_videos

    columns = {name: getattr(args, name) for name in ("path_column", "label_column", "split_column")}
    given = [f"--{name.replace('_', '-')}" for name in (*columns, "root", "split") if getattr(args, name) is not None]
    items = []
    for source in args.sources:
        if is_dataset(source) or args.class_folders:
            annotated = source != "digits" and not Path(source).is_dir()
            if not annotated and (unfit := [flag for flag in given if flag != "--split"]):
                raise UserError(f"{source}: {', '.join(unfit)} is for annotations")
            items += plan_dataset(source, args.root, args.split, args.renderings or 1, **columns)
        elif given:
            raise UserError(f"{source}: {', '.join(given)} is for annotations and --class-folders")
        else:
            items += plan_files(find_videos([source]))
    return validate_unique(items)
