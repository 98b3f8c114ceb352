"""Extract features of videos: the functions behind the commands `vidtok extract` and `vidtok encode`."""

import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import torch

from vidtok.checks import count_cpus
from vidtok.datasets import VideoError
from vidtok.datasets.backends import READERS
from vidtok.errors import UserError
from vidtok.extraction.decoding import ReadConfig, StreamChunk, expect_items
from vidtok.extraction.engine import Decoders, encode_pieces, extract_records, reason, run_extraction
from vidtok.extraction.model import FeatureModel, follow, load_head, load_tokenizer, make_settings
from vidtok.extraction.npz import read_npz, write_npz
from vidtok.extraction.output import Output, another, find_complete
from vidtok.extraction.record import describe, differences, entry_of, settings_of
from vidtok.extraction.sources import WorkItem, parse_clips, plan_sources, plan_tasks
from vidtok.extraction.stats import ExtractionStats, Forecast, Speeds
from vidtok.extraction.videos import Agreement, as_list
from vidtok.files import RemoteFolder, plan_jobs
from vidtok.names import unescape_name
from vidtok.remote import ADDRESS

Sources = str | Path | Sequence[str | Path]
Report = Callable[[ExtractionStats], None]

SAMPLE = 4  # videos that a dry run extracts, at least; two per decode process if that is more
MEASURED = 150  # frames per video for measuring speeds; they are held in memory
FEW = 8  # with fewer videos, starting decode processes takes longer than it saves


def extract(
    sources: Sources,
    output: str | Path,
    *,
    container: str = "npz",
    force: bool = False,
    progress: Report = lambda stats: None,
    **settings,
) -> ExtractionStats:
    """Extract features of videos into a folder. Repeating a call resumes where the last one stopped.

        vidtok.extract("videos/", "tokens", model="vidtok-t", size=128)
        vidtok.extract("train.csv", "hidden", features="hidden", pool="mean", clips="dense:2", size=128, crop="center")

    Args:
        sources: files, folders, glob patterns, annotation files or "digits"; one or several.
        output: folder for features of one model with one set of settings; several processes may fill it at once. Or an
            address such as s3://bucket/tokens, see `vidtok.files.RemoteFolder`.
        container: "npz", "parquet" or "webdataset".
        force: extract complete videos again.
        progress: called with the counts so far after each video.
        settings: model, features, size, clips, workers, ...: the keyword arguments of `Extraction`.

    Returns:
        Counts, failures (also listed in output/failures.csv) and rates; `str()` is a one-line summary. A video that
        fails doesn't end the run.

    Raises:
        ValueError, UserError: settings that are illegal, or don't fit each other or the folder.
        OSError: the disk is full, for example. All that is complete stays.
    """
    extraction = Extraction(sources, **settings)
    if not ADDRESS.match(str(output)):
        return extraction.run(output, container, force, progress)
    with RemoteFolder(str(output)) as remote:
        return extraction.run(remote, container, force, remote.reporting(progress))


def encode_files(
    inputs: Sources,
    output: str | Path,
    *,
    frame_folders: float | None = None,
    force: bool = False,
    progress: Report = lambda stats: None,
    **settings,
) -> ExtractionStats:
    """Encode whole videos to token files: like `extract` with its defaults; one video can go to one file.

    Args:
        inputs: as the sources of `extract`.
        output: a folder, in which the tree below each input folder is kept, also at an address, see `extract`; or, for
            one video, a file name in .npz.
        frame_folders, force, progress, settings: as of `extract`.

    Returns:
        As `extract`. With a precision other than fp32, `agreement` compares the tokens with those of fp32.
    """
    if ADDRESS.match(str(output)):
        with RemoteFolder(str(output)) as remote:
            settings |= {"frame_folders": frame_folders, "force": force, "progress": remote.reporting(progress)}
            return encode_files(inputs, remote.copy, **settings)
    items = plan_sources(as_list(inputs), frame_folders=frame_folders)
    files = [(Path(item.path), Path(unescape_name(item.id))) for item in items if item.path is not None]
    jobs = plan_jobs(files, str(output), ".npz", (".npz",))
    extraction = Extraction(items=items, frame_folders=frame_folders, **settings)
    if [job.target for job in jobs] == [Path(output)]:
        stats = extraction.run_one(jobs[0].target, force)
    else:
        stats = extraction.run(output, "npz", force, progress)
    if extraction.settings.precision != "fp32":
        stats.agreement = extraction.agreement()
    return stats


def measure(sources: Sources, *, container: str = "npz", **settings) -> dict:
    """Measure the speed of decoding, of the model and of both together, on the first videos. No output is kept.

    Args:
        sources, container, settings: as of `extract`.

    Returns:
        {"frames", "max_frames" (per video), "device", "cpus", "threads" (of the model), "decode_processes", "batch",
        "rounds" (list of `Speeds`)}.
    """
    return Extraction(sources, **settings).measure(container)


def dry_run(
    sources: Sources, output: str | Path, *, container: str = "npz", force: bool = False, **settings
) -> Forecast:
    """Forecast what `extract` with the same arguments would do, and how long it would take here. No output is kept.

    All videos are opened, but not read to their ends. Time and bytes are extrapolated from the first videos, which are
    extracted into a temporary folder.

    Raises:
        ValueError, UserError: as `extract`.
    """
    output = RemoteFolder(str(output)).fetch() if ADDRESS.match(str(output)) else output
    return Extraction(sources, **settings).dry_run(output, container, force)


class Extraction:
    """Prepare an extraction: plan the videos, load the model.

    Args:
        sources: as of `extract`. items: work items to use instead.
        model: tokenizer, as for `vidtok.extraction.model.open_tokenizer`. device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: of the networks, "fp32" or "bf16".
        features: "ids", "codes", "latents", "hidden" or "embedding". dtype: of stored floats, "float32" or "float16".
        pool: "mean" of hidden features or latents over the whole grid; None, the grid.
        head: trained head for embeddings: shipped name, folder or hub id. Clips, size and crop that are not given are
            those of its training.
        size: short side to resize to in pixels; None, native. crop: "center", with clips "three"; None, no crop.
        fps: frames per second to resample to; None, native. max_frames: per video; None, all.
        clips: "uniform:N", "dense:N" or "windows[:HOP]"; None, whole videos. frames: frames per clip (16). stride:
            from one frame of a clip to the next (1).
        tile: side of spatial tiles in pixels, for frames that don't fit into memory; None, no tiles.
        root: folder of the videos (that of the annotation file). split: one split of the annotations (all).
        path_column, label_column, split_column: names in the header of a csv (found automatically).
        renderings: number per video of digits (1). class_folders: the folders in a source are classes.
        task, task_clips: motion task whose clips are made from the videos, with clips "dense:1", frames and size; and
            their total number. See `vidtok.datasets.MotionTasks`.
        frame_folders: frame rate given to folders of numbered images, each of which is a video; None, none is.
        batch: streams per forward pass (1 on a CPU, 8 on a GPU). threads: of the model on a CPU, for the whole process.
        workers: decode processes (by videos and CPUs); 0, none. time_limit: seconds until a stuck decoder is killed.
        reader: "auto", "pyav", "decord" or "torchcodec", or "pyav+deinterlace+sar", see `vidtok.datasets.open_video`.
        on_error: "raise", a damaged video fails; or "keep", it is extracted without its damaged frames, as the ffmpeg
            command does; its records and the result's `damaged` list them (reader "pyav" only).
        engine: "local", or "ray" for all machines of a cluster. ray_address: of a running cluster, "auto" or
            "host:port"; None, a new local one. actors: Ray actors (one per GPU, or per two CPUs). ray_write: "driver",
            which writes all files; or "actors", if the output is a folder that all machines share, or an address.

    Attributes:
        items: the videos. settings: shared by all records. tokenizer: the loaded model.
    """

    def __init__(
        self,
        sources: Sources = (),
        *,
        items: Sequence[WorkItem] = (),
        model: str = "vidtok-t",
        device: str = "auto",
        precision: str = "fp32",
        features: str = "ids",
        dtype: str = "float32",
        pool: str | None = None,
        head: str | None = None,
        size: int | None = None,
        crop: str | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        clips: str | None = None,
        frames: int | None = None,
        stride: int | None = None,
        tile: int | None = None,
        root: str | None = None,
        split: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        renderings: int | None = None,
        task: str | None = None,
        task_clips: int | None = None,
        class_folders: bool = False,
        frame_folders: float | None = None,
        batch: int | None = None,
        threads: int | None = None,
        workers: int | None = None,
        time_limit: float = 60,
        reader: str = "auto",
        on_error: str = "raise",
        engine: str = "local",
        ray_address: str | None = None,
        actors: int | None = None,
        ray_write: str = "driver",
    ):
        if clips is None and (frames is not None or stride is not None):
            raise ValueError("frames and stride are of clips: give clips, too")
        if reader.partition("+")[0] not in READERS:
            raise ValueError(f"the reader is {', '.join(READERS)}, not {reader!r}")
        if engine not in ("local", "ray"):
            raise ValueError(f"the engine is local or ray, not {engine!r}")
        if ray_write not in ("driver", "actors"):
            raise ValueError(f"with Ray the driver or the actors write, not {ray_write!r}")
        sampler = None if clips is None else parse_clips(clips, frames or 16, stride or 1, fps)
        columns = {"path_column": path_column, "label_column": label_column, "split_column": split_column}
        if task is not None:
            named = {"root": root, "frame_folders": frame_folders, **columns}
            items = plan_tasks(as_list(sources), task, task_clips, split, sampler, size, **named)
        self.items = items or plan_sources(sources, root, split, renderings, class_folders, frame_folders, **columns)
        if threads is not None:
            torch.set_num_threads(threads)
        # With Ray the model stays on the CPU: it is copied to the actors.
        tokenizer = self.tokenizer = load_tokenizer(model, "cpu" if engine == "ray" else device, precision, tile, True)
        trained = None if head is None else load_head(head, tokenizer)
        if trained is not None and trained.config.protocol is not None:
            size, crop, sampler = follow(trained.config.protocol, size, crop, sampler)
        self.settings = make_settings(
            tokenizer,
            features,
            precision,
            dtype,
            reader,
            head=None if trained is None else f"{trained.config.name}, {trained.weight_hash}",
            pool=pool,
            resize=size,
            crop=crop,
            resample=None if sampler else fps,
            max_frames=max_frames,
            sampler=None if sampler is None else str(sampler),
            tile=tile,
            frame_folders=frame_folders,
        )
        reading = size, crop, fps, max_frames, sampler, reader, on_error, tokenizer.chunk_latents
        self._reading = ReadConfig(tokenizer.stride, *reading)
        self._batch, self._given_workers, self._threads, self._time_limit = batch, workers, threads, time_limit
        self._model = FeatureModel(tokenizer, self.settings, batch, trained)
        self._workers = default_workers(len(self.items)) if workers is None else workers
        if self._workers < 0:
            raise UserError(f"{self._workers} workers are fewer than none")
        self._ray = (ray_address, actors, ray_write) if engine == "ray" else None
        self._model_name = model

    def run(
        self, output: str | PathLike, container: str = "npz", force: bool = False, progress: Report = lambda stats: None
    ) -> ExtractionStats:
        """Fill a folder, see `extract`."""
        if self._ray is not None:
            return self._run_on_ray(output, container, force, progress)
        stats = ExtractionStats(len(self.items))
        folder = Output(output, self.settings, container, self.items, stats, force)
        with Decoders(self._reading, self._workers, self._time_limit) as decoders:
            work = partial(extract_records, decoders=decoders, model=self._model, stats=stats)
            run_extraction(folder, work, progress)
        stats.finish()
        return stats

    def _run_on_ray(self, output: str | PathLike, container: str, force: bool, progress: Report) -> ExtractionStats:
        """Fill a folder, with the model and the decoders in actors of a Ray cluster."""
        try:
            from vidtok.extraction.ray_engine import ActorOutput, RayExtractor, connect, share_cluster
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'vidtok[ray]'") from error

        assert self._ray is not None
        address, actors, writing = self._ray
        connect(address)
        share = share_cluster(len(self.items), actors, self._given_workers, self._threads)
        self._model.batch = self._batch or (8 if share.gpus else 1)
        stats = ExtractionStats(len(self.items))
        open_output = ActorOutput if writing == "actors" else Output
        folder = open_output(output, self.settings, container, self.items, stats, force)
        with RayExtractor(self._model, self._reading, share, self._time_limit, folder) as extractor:
            run_extraction(folder, extractor.extract, progress)
        stats.finish()
        return stats

    def run_one(self, path: Path, force: bool = False) -> ExtractionStats:
        """Extract the only video into one .npz file."""
        stats, (item,) = ExtractionStats(1), self.items
        if path.exists() and not force:
            there = read_npz(path)[0]
            if other := differences(self.settings, settings_of(describe(there))):
                raise UserError(f"{path} is of other settings: {other}. --force overwrites it")
            if why := another(item, entry_of(describe(there))):
                raise UserError(f"{path}: {why}, or --force")
            stats.skipped = 1
            stats.finish()
            return stats
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = [item]
        with Decoders(self._reading, self._workers, self._time_limit) as decoders:
            next_item = lambda: waiting.pop() if waiting else None  # noqa: E731
            for _, result in extract_records(next_item, decoders, self._model, stats):
                if isinstance(result, Exception):
                    stats.failures.append((item, reason(result)))
                else:
                    start = time.perf_counter()
                    write_npz(path, result)
                    stats.seconds["write"] += time.perf_counter() - start
                    stats.add(item, result)
        stats.finish()
        return stats

    def measure(self, container: str = "npz") -> dict:
        """Measure speeds, see the function `measure`."""
        reading = self._reading.beginning(MEASURED)
        with Decoders(reading, self._workers, self._time_limit) as decoders:
            frames, rounds = measure_speeds(self.items, decoders, self._model, container)
        return {
            "frames": frames,
            "max_frames": reading.max_frames,
            "device": str(self.tokenizer.device),
            "cpus": count_cpus(),
            "threads": torch.get_num_threads(),
            "decode_processes": self._workers,
            "batch": self._model.batch,
            "rounds": rounds,
        }

    def dry_run(self, output: str | Path, container: str = "npz", force: bool = False) -> Forecast:
        """Forecast what `run` would do, see the function `dry_run`."""
        forecast = Forecast(len(self.items), device=str(self.tokenizer.device))
        complete = find_complete(output, self.settings, container, self.items)
        todo: list[WorkItem] = []
        for item in self.items:
            if force or (entry := complete(item.id)) is None:
                todo.append(item)
            elif why := another(item, entry):
                forecast.failures.append((item, why))
            else:
                forecast.complete += 1
        first: list[WorkItem] = []
        for item, expected in expect_items(todo, self._reading, self._workers, self._time_limit):
            if isinstance(expected, VideoError):
                forecast.failures.append((item, reason(expected)))
                continue
            forecast.seconds += expected.seconds
            forecast.frames += expected.frames
            forecast.records += expected.records
            first += [item] if len(first) < max(SAMPLE, 2 * self._workers) else []
        if first:
            with Decoders(self._reading.beginning(MEASURED), self._workers, self._time_limit) as decoders:
                _extract(first[:1], decoders, self._model, container)  # warms up
                stats = _extract(first, decoders, self._model, container)
            # The size of pooled features doesn't depend on the length of the video.
            share = forecast.records / max(stats.records, 1)
            if self.settings.pool is None and self.settings.feature != "embedding":
                share = forecast.frames / max(stats.frames, 1)
            forecast.measured, forecast.bytes = stats.done, share * stats.bytes
            forecast.run_seconds = forecast.frames / max(stats.frames, 1) * stats.elapsed
        return forecast

    def agreement(self) -> Agreement | None:
        """Compare the ids with those of fp32 on the beginnings of the first videos; None if none can be read."""
        settings = self.settings
        agreement = Agreement(self.tokenizer, load_tokenizer(self._model_name, str(self.tokenizer.device)))
        for path in [item.path for item in self.items if item.path is not None]:
            try:
                agreement.add(path, settings.resize, settings.resample, settings.tile)
            except VideoError:  # the run has recorded the failure
                continue
        return agreement if agreement.tokens else None


def default_workers(videos: int) -> int:
    """Return the number of decode processes: half of the CPUs, as the model needs the rest; 0 for a few videos."""
    return 0 if videos < FEW else max(1, count_cpus() // 2)


ROUNDS = 3
FRAMES = 2000  # of all videos; their chunks are held in memory to measure the model alone


def measure_speeds(
    items: Iterable[WorkItem], decoders: Decoders, model: FeatureModel, container: str
) -> tuple[int, list[Speeds]]:
    """Measure `ROUNDS` rounds on the first videos, up to `FRAMES` frames. Returns (frames, speeds of each round).

    Raises:
        ValueError: no video can be read.
    """
    pieces: dict[WorkItem, list[StreamChunk]] = {}
    frames, waiting = 0, iter(items)
    spent: dict[str, float] = defaultdict(float)

    def next_item() -> WorkItem | None:
        return next(waiting, None) if frames < FRAMES else None

    for item, piece in decoders.pieces(next_item, spent):
        if isinstance(piece, VideoError):
            pieces.pop(item, None)
        else:
            # A copy, since the decoder reuses its memory.
            pieces.setdefault(item, []).append(piece._replace(video=piece.video.clone()))
            frames += piece.video.shape[2]
    if not pieces:
        raise ValueError("no video could be read")
    good = [*pieces]
    parts = [(item, piece) for item in good for piece in pieces[item]]
    frames = sum(len(piece.info.timestamps) for _, piece in parts if piece.info is not None)
    encode_pieces(parts[:1], model)  # warms up
    rounds = []
    for _ in range(ROUNDS):
        seconds = [
            _time(lambda: deque(decoders.pieces(partial(next, iter(good), None), spent), maxlen=0)),
            _time(lambda: encode_pieces(parts, model)),
            _time(lambda: _extract(good, decoders, model, container)),
        ]
        rounds.append(Speeds(*(frames / s for s in seconds)))
    return frames, rounds


def _extract(items: list[WorkItem], decoders: Decoders, model: FeatureModel, container: str) -> ExtractionStats:
    with tempfile.TemporaryDirectory() as folder:
        stats = ExtractionStats(len(items))
        extract = partial(extract_records, decoders=decoders, model=model, stats=stats)
        run_extraction(Output(folder, model.settings, container, items, stats), extract)
    stats.finish()
    return stats


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
