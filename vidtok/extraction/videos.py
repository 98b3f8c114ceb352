"""Encode and decode videos in bounded memory, and whole files: `decode_files` and `reconstruct_files`."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok import streaming
from vidtok.checks import Net, check_memory
from vidtok.datasets import VideoWriter, iter_video
from vidtok.datasets.frames import OnError
from vidtok.datasets.writing import find_audio
from vidtok.errors import UserError, is_expected, one_line
from vidtok.extraction.containers import SUFFIXES, is_shard, open_reader
from vidtok.extraction.decoding import Info, damage_meta, reader_mode
from vidtok.extraction.engine import make_record
from vidtok.extraction.model import load_tokenizer, make_settings
from vidtok.extraction.npz import read_npz
from vidtok.extraction.record import Record, id_type
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import RunStats
from vidtok.files import MOVIES, Job, plan_jobs
from vidtok.hub import describe_weights
from vidtok.inputs import find_files, find_videos
from vidtok.names import FRAMES, escape_name
from vidtok.remote import as_address
from vidtok.streaming import LATENTS, coded_size, cut_chunks, pad_chunks
from vidtok.tokenizer import VideoTokenizer

Report = Callable[[RunStats], None]


class Source:
    """Video file as an iterable of chunks, float32 [1, 3, any, H, W] in [-1, 1]; it can be iterated once.

    Args:
        path: the video.
        size: short side to resize to in pixels; None, native. fps: frame rate to resample to; None, native.
        max_frames: stop after this number of frames; None, read all.
        count: called with the number of frames of each chunk. reader, on_error: see `vidtok.datasets.open_video`.

    Attributes:
        frames: number of frames read so far.
        stream: the `VideoStream` behind it.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        count: Callable[[int], None] = lambda frames: None,
        reader: str = "auto",
        on_error: OnError = "raise",
    ):
        self.resize, self.fps, self.max_frames, self.count = size, fps, max_frames, count
        self.stream = iter_video(path, fps=fps, size=size, multiple=1, on_error=on_error, reader=reader)
        self.frames = 0

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.stream:
            if self.max_frames is not None:
                chunk = chunk[:, :, : self.max_frames - self.frames]
            self.frames += chunk.shape[2]
            self.count(chunk.shape[2])
            yield chunk
            if self.frames == self.max_frames:
                return

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()

    def record(self, tokenizer: VideoTokenizer, ids: np.ndarray, precision: str, tile: int | None) -> Record:
        """Make the record of this video's ids [t, h, w], after it has been read to its end."""
        settings = make_settings(
            tokenizer,
            precision=precision,
            reader=self.stream.backend,
            resize=self.resize,
            resample=self.fps,
            max_frames=self.max_frames,
            tile=tile,
        )
        path = str(self.stream.path)
        item = WorkItem(escape_name(os.path.basename(FRAMES.sub("", path))), path)
        stream, times = self.stream, self.stream.timestamps[: self.frames]
        source = stream.native_size, stream.native_fps, stream.backend, stream.source_bytes
        info = Info(stream.fps, stream.size, *source, times, None, damage_meta(stream))
        return make_record(item, None, info, coded_size(stream.size, tokenizer.stride), ids, settings)


class Echo:
    """Pass-through iterable over the chunks of a video, which keeps their frames until they are taken."""

    def __init__(self, chunks: Iterable[Tensor]):
        self.chunks = chunks
        self.kept: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            self.kept.append(chunk)
            yield chunk

    def take(self, frames: int) -> Tensor:
        """Return the next `frames` frames and drop them: [1, 3, frames, H, W], fewer if fewer are kept."""
        video = torch.cat(self.kept, 2)
        self.kept = [video[:, :, frames:]]
        return video[:, :, :frames]


def encode_chunks(tokenizer: VideoTokenizer, chunks: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """Encode the chunks of one video of any length and size, padded by `pad_chunks`, to int64 ids [1, any, h, w].

    Raises:
        MemoryError: a chunk doesn't fit the free memory; with tiles this isn't checked.
    """
    padded = pad_chunks(chunks, tokenizer.stride, tokenizer.chunk_latents)
    if tile is None:
        padded = map(lambda chunk: _fits(tokenizer, tokenizer.encoder, chunk, (1, 1, 1)), padded)
    return streaming.stream_encode(tokenizer, padded, tile)


def decode_chunks(tokenizer: VideoTokenizer, ids: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """Decode int64 ids [1, any, h, w] to float32 [1, 3, any, s_h h, s_w w] in [-1, 1], padding included.

    Raises:
        MemoryError: as `encode_chunks`.
    """
    if tile is None:
        ids = map(lambda chunk: _fits(tokenizer, tokenizer.decoder, chunk, tokenizer.stride), ids)
    return streaming.stream_decode(tokenizer, ids, tile)


def _fits(tokenizer: VideoTokenizer, net: Net, chunk: Tensor, stride: tuple[int, int, int]) -> Tensor:
    check_memory(net, chunk.shape, stride)
    return chunk


def collect_ids(ids: Iterable[Tensor], bits: float) -> np.ndarray:
    """Concatenate ids [1, any, h, w] to [t, h, w], in the dtype of token files."""
    return np.concatenate([part[0].cpu().numpy().astype(id_type(bits)) for part in ids])


def chunk_ids(ids: np.ndarray, latents: int = LATENTS) -> Iterator[Tensor]:
    """Split ids [t, h, w] into chunks of a few latents, int64 [1, n, h, w]."""
    for start in range(0, len(ids), latents):
        yield torch.from_numpy(ids[start : start + latents].astype(np.int64))[None]


def decode_files(
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    model: str = "vidtok-t",
    device: str = "auto",
    precision: str = "fp32",
    tile: int | None = None,
    force: bool = False,
    progress: Report = lambda stats: None,
) -> RunStats:
    """Decode token files to videos.

    Args:
        inputs: files of `vidtok extract` in any container, folders of them, glob patterns; one or several.
        output: a folder; or, for one video, a file name with one of the suffixes `vidtok.files.MOVIES`.
        model: the tokenizer that made the tokens. device, precision, tile: as of `vidtok.extract`.
        force: overwrite videos that exist; otherwise each is a failure.
        progress: called with the counts so far, every few frames.

    Returns:
        Counts and failures. A file that fails, such as one with tokens of other weights, doesn't end the run.
    """
    readers = _plan_records(inputs, output)
    tokenizer = load_tokenizer(model, device, precision, tile, custom=True)

    def decode(job: Job, count: Callable[[int], None]) -> None:
        record = readers[job]()
        meta = record.meta
        if meta.feature != "ids" or meta.clips is not None:
            raise ValueError(f"it holds {meta.feature} of {meta.clips or 1} clips: only the ids of whole videos decode")
        if meta.weight_hash != tokenizer.weight_hash:
            raise ValueError(
                f"its tokens are of {meta.model} with {describe_weights(meta.weight_hash)}, and --model {model} has "
                f"weights {tokenizer.weight_hash}: give the model that made them"
            )
        with VideoWriter(job.target, meta.fps) as writer:
            chunks = decode_chunks(tokenizer, chunk_ids(record.features, tokenizer.chunk_latents), tile)
            for chunk in cut_chunks(chunks, meta.frames, meta.size):
                writer.write(chunk)
                count(chunk.shape[2])

    return _run_jobs([*readers], decode, force, progress)


def reconstruct_files(
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    model: str = "vidtok-t",
    device: str = "auto",
    precision: str = "fp32",
    size: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    tile: int | None = None,
    reader: str = "auto",
    on_error: str = "raise",
    frame_folders: float | None = None,
    side_by_side: bool = False,
    audio: bool = True,
    force: bool = False,
    progress: Report = lambda stats: None,
) -> RunStats:
    """Encode and decode videos in one pass, without token files.

    Args:
        inputs: videos, folders of them, glob patterns; one or several.
        side_by_side: write the original to the left of the reconstruction.
        audio: copy the audio of each video.
        output, force, progress: as of `decode_files`. The others: as of `vidtok.extract`.

    Returns:
        Counts and failures, as `decode_files`.
    """
    jobs = plan_jobs(find_videos(as_list(inputs), frame_folders), str(output), ".mp4", MOVIES)
    mode = reader_mode(on_error, reader)
    tokenizer = load_tokenizer(model, device, precision, tile, custom=True)

    def reconstruct(job: Job, count: Callable[[int], None]) -> str:
        with Source(job.source, size, fps, max_frames, count, reader, mode) as source:
            originals = Echo(source)
            ids = encode_chunks(tokenizer, originals, tile)
            sound = find_audio(job.source) if audio else None
            with VideoWriter(job.target, source.stream.fps, audio=sound, sar=source.stream.sar) as writer:
                for chunk in decode_chunks(tokenizer, ids, tile):
                    original = originals.take(chunk.shape[2])
                    chunk = chunk.cpu()[:, :, : original.shape[2], : original.shape[3], : original.shape[4]]
                    writer.write(torch.cat([original, chunk], 4) if side_by_side else chunk)
            return damage_meta(source.stream).get("damage", "")

    return _run_jobs(jobs, reconstruct, force, progress)


def as_list(inputs: str | Path | Iterable) -> list:
    """Return one or several inputs as a list, with paths as strings."""
    if isinstance(inputs, str | Path):
        return [str(inputs)]
    return [str(item) if isinstance(item, Path) else item for item in inputs]


def _read_one(source: Path) -> Record:
    return read_npz(source)[0]


def _plan_records(inputs: str | Path | Iterable[str | Path], output: str | Path) -> dict[Job, Callable[[], Record]]:
    """Plan one job for each .npz and for each video of a shard: {job: function that reads its record}."""
    if remote := next(filter(None, map(as_address, as_list(inputs))), None):
        raise UserError(f"{remote}: features are read on this machine: download them first")
    files = find_files(as_list(inputs), tuple(SUFFIXES.values()))
    shards = [file for file, _ in files if is_shard(file)]
    files = [(file, below) for file, below in files if file not in shards]
    jobs = plan_jobs(files, str(output), ".mp4", MOVIES)
    readers: dict[Job, Callable[[], Record]] = {job: partial(_read_one, job.source) for job in jobs}
    for shard in shards:
        try:
            reader = open_reader(shard)
        except ValueError as error:
            readers[Job(shard, Path(output) / shard.name)] = partial(_fail, error)
            continue
        below = [(shard, Path(entry.id)) for entry in reader.entries]
        for i, job in enumerate(plan_jobs(below, str(output), ".mp4", MOVIES)):
            readers[Job(shard, job.target)] = partial(reader.read, i)
    return readers


def _fail(error: Exception) -> Record:
    raise error


def _run_jobs(
    jobs: list[Job], work: Callable[[Job, Callable[[int], None]], str | None], force: bool, progress: Report
) -> RunStats:
    """Run jobs one after the other.

    work: function of (job, count) that writes job.target, calls count with the number of frames it has done, and
    returns the damage of its result. If it raises an error that `is_expected`, this job has failed.
    """
    stats = RunStats(len(jobs))

    def count(frames: int) -> None:
        stats.frames += frames
        progress(stats)

    for job in jobs:
        try:
            if job.target.exists() and not force:
                raise FileExistsError(f"{job.target} exists: --force overwrites it")
            job.target.parent.mkdir(parents=True, exist_ok=True)
            if damage := work(job, count):
                stats.damaged.append((job.source, damage))
            stats.done += 1
        except Exception as error:
            if not is_expected(error):
                raise
            stats.failures.append((job.source, one_line(error)))
        progress(stats)
    stats.finish()
    return stats


VIDEOS = 8  # videos whose first frames are encoded twice; more take time and hardly change the result


class Agreement:
    """Agreement of the bits and tokens of two tokenizers on the beginnings of the first `VIDEOS` videos.

    In bf16 a latent near a decision boundary of the quantizer may get another code than in fp32.
    """

    def __init__(self, tokenizer: VideoTokenizer, reference: VideoTokenizer):
        self.tokenizer, self.reference = tokenizer, reference
        self.bits = math.ceil(tokenizer.bits)
        self.videos = self.frames = self.tokens = self.same_tokens = self.other_bits = 0

    def add(self, path: str | Path, size: int | None, fps: float | None, tile: int | None) -> None:
        """Compare the first chunk of a video; after `VIDEOS` videos do nothing."""
        if self.videos == VIDEOS:
            return
        with Source(path, size, fps) as source:
            clip = next(pad_chunks(source, self.tokenizer.stride))
        differ = self.tokenizer.encode(clip, tile=tile) ^ self.reference.encode(clip, tile=tile)
        self.videos += 1
        self.frames += clip.shape[2]
        self.tokens += differ.numel()
        self.same_tokens += int((differ == 0).sum())
        places = torch.arange(self.bits, device=differ.device)
        self.other_bits += int((differ[..., None] >> places & 1).sum())

    def __str__(self) -> str:
        bits = 1 - self.other_bits / (self.tokens * self.bits)
        return (
            f"bf16 against fp32: {bits:.2%} of bits and {self.same_tokens / self.tokens:.2%} of tokens agree "
            f"({self.frames} frames of {self.videos} videos)"
        )
