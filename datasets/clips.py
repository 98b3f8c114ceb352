"""Training batches for a tokenizer from folders of videos and images."""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from vidtok.checks import check_clip, check_counts
from vidtok.datasets.annotations import read_annotations
from vidtok.datasets.annotations.table import of_split
from vidtok.datasets.backends import validate_no_options
from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.frames import frames_to_video
from vidtok.datasets.loading import WHOLE, DecodePool, Shard, is_image_batch, shard_rows
from vidtok.datasets.samplers import Segment, choose_in_segment, ids_and_segments
from vidtok.datasets.seek import read_selection, window_indices
from vidtok.datasets.sources import find_media
from vidtok.datasets.yuv_store import StoredVideo, YUVStore, add_videos
from vidtok.errors import VideoError
from vidtok.names import IMAGE_SUFFIXES, VIDEO_SUFFIXES, spellings

Root = str | Path | Sequence[str | Path] | dict[str | Path, float]

# Limit of upscaling: upscaled videos have no fine detail and would teach the decoder to blur.
MAX_ENLARGEMENT = 9 / 8


class StoredWindow(NamedTuple):
    """Selected frames of a stored video, not yet read.

    Attributes:
        video: the stored video.
        indices: int64 [T], frame numbers.
    """

    video: StoredVideo
    indices: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.video.height, self.video.width


class ClipFolder(Dataset):
    """Endless sequence of batches from folders of videos and images, each a pure function of (seed, number).

    The number of the next batch is the whole state: any number of workers gives the same batches, and a run resumes
    with `loader(start=n)`. `dataset[i]` is float32 in [-1, 1]: [batch_size, 3, frames, crop, crop] of videos, or, for a
    fraction `image_fraction` of all batches, evenly spread, [image_batch_size, 3, 1, crop, crop] of images. Each window
    has its own random numbers, so that a process can make one shard of a batch without the others.

    A file that can't be used (broken, too short, too small) is replaced by another one. Each is reported once by a
    warning and listed in `skipped`.

    Args:
        root: a folder (searched recursively), several folders, or {folder: share of the video clips and of the images}.
        frames: frames per clip, 1 + a multiple of s_t.
        size: short side in pixels before the crop; (low, high), drawn uniformly per crop, but at most 9/8 of the file's
            own short side; None, native size.
        crop: side of the square crop in pixels, a multiple of s_h and s_w, at most `size`.
        crops_per_clip: number of crops from one decoded window, a divisor of both batch sizes. They are consecutive in
            the batch, so that they fall into the same shard.
        flip: mirror each crop with probability 1/2.
        fps: frames per second to resample to (see `read_video`); None, native.
        seed: seed of all random choices.
        images: whether to use images too.
        batch_size: clips per batch of videos.
        image_batch_size: images per batch of images; None, 4 * batch_size.
        image_fraction: share of batches that are images, 0 to 1; without videos it is 1, without images 0.
        cache: folder for decoded videos (`vidtok.datasets.yuv_store`). `loader` or the first batch decodes each video
            into it once, instead of decoding each window when it is drawn. Files, windows and crops are drawn the same
            with and without a cache; the pixels of stored videos differ by rounding.
        cache_gb: limit of the cache in GB (1e9 bytes); None, no limit. A random choice of videos is stored up to the
            limit; the others are decoded per window.
        stride: (s_t, s_h, s_w), stride of the tokenizer to train.
        annotations: a file that lists the files to use by their paths below the root (see `read_annotations`), and
            may give segments of them, from which windows are then drawn; None, all files.
        split: the split to use, if the annotations have a column of splits.
        reader: "auto", "pyav", "decord" or "torchcodec", see `vidtok.datasets.open_video`; images are read by PyAV.

    Raises:
        ValueError: illegal arguments, or no video or image in the folders.
    """

    def __init__(
        self,
        root: Root,
        frames: int = 17,
        size: int | tuple[int, int] | None = None,
        crop: int = 64,
        crops_per_clip: int = 1,
        flip: bool = True,
        fps: float | None = None,
        seed: int = 0,
        images: bool = True,
        batch_size: int = 8,
        image_batch_size: int | None = None,
        image_fraction: float = 0.1,
        cache: str | Path | None = None,
        cache_gb: float | None = None,
        stride: tuple[int, int, int] = (4, 8, 8),
        annotations: str | Path | None = None,
        split: str | None = None,
        reader: str = "auto",
    ):
        check_clip(frames, crop, stride)
        image_batch_size = image_batch_size or 4 * batch_size
        check_counts(batch_size=batch_size, image_batch_size=image_batch_size, crops_per_clip=crops_per_clip)
        if batch_size % crops_per_clip or image_batch_size % crops_per_clip:
            raise ValueError(f"{crops_per_clip=} must divide {batch_size=} and {image_batch_size=}")
        self.size = (size, size) if isinstance(size, int) else size
        if self.size and self.size[0] < crop:
            raise ValueError(f"crop={crop} does not fit into size={size}: give a crop of at most {self.size[0]} pixels")
        self.frames, self.crop, self.crops_per_clip, self.flip, self.fps = frames, crop, crops_per_clip, flip, fps
        self.reader = reader
        if cache is not None:
            validate_no_options(reader)
        self.seed, self.batch_size, self.image_batch_size = seed, batch_size, image_batch_size
        names = None if annotations is None else _names(annotations, split)
        self.videos, self.segments, self.video_shares = _find(root, VIDEO_SUFFIXES, names)
        self.images, whole, self.image_shares = _find(root, IMAGE_SUFFIXES if images else (), names)
        self.segments += whole
        if not self.videos and not self.images:
            which = "" if annotations is None else f" that {annotations} names"
            raise ValueError(f"no video{' or image' if images else ''}{which} in {root}")
        self.image_fraction = 0.0 if not self.images else 1.0 if not self.videos else image_fraction
        self._cache, self._cache_gb = cache, cache_gb
        self._store: YUVStore | None = None
        self._stored: dict[str, StoredVideo] = {}
        # In shared memory, so that all workers skip a file that one finds unusable, and the main process can count.
        self.paths = self.videos + self.images
        self._bad = torch.zeros(len(self.paths), dtype=torch.bool, device="cpu").share_memory_()
        # Per file, 1 + the number of the batch for which it is being read, else 0.
        self._reading = torch.zeros(len(self.paths), dtype=torch.int64, device="cpu").share_memory_()

    @property
    def skipped(self) -> list[Path]:
        """Files found unusable so far by any worker."""
        return [Path(path) for path, is_bad in zip(self.paths, self._bad, strict=True) if is_bad]

    def summary(self) -> str:
        """Return a note on the files that were skipped so far."""
        return f"{len(self.skipped)} files skipped"

    def is_image_batch(self, index: int) -> bool:
        """Return whether batch `index` holds images."""
        return is_image_batch(index, self.image_fraction)

    def __getitem__(self, index: int) -> Tensor:
        return self.shard_of(index, WHOLE)

    def shard_of(self, index: int, shard: Shard) -> Tensor:
        """Return the rows of one shard of `dataset[index]`; decode only the windows that these rows are cut from.

        Raises:
            ValueError: the batch is not divisible by the number of shards.
        """
        self._open_store()
        rows = shard_rows(shard, self.image_batch_size if self.is_image_batch(index) else self.batch_size)
        first = rows.start // self.crops_per_clip
        clips = []
        for window in range(first, 1 + (rows.stop - 1) // self.crops_per_clip):
            rng = np.random.default_rng([self.seed, index, window])
            drawn = self._draw(rng, index)
            clips += [self._crop(drawn, rng) for _ in range(self.crops_per_clip)]
        offset = rows.start - first * self.crops_per_clip
        return torch.stack(clips[offset : offset + len(rows)])

    def loader(
        self,
        start: int = 0,
        stop: int | None = None,
        workers: int = 0,
        time_limit: float = 600,
        shard: Shard = WHOLE,
    ) -> Iterator[Tensor]:
        """Yield batches start, start + 1, ..., prefetched by worker processes.

        Args:
            start: number of the first batch.
            stop: number after the last batch; None, endless.
            workers: number of processes; 0, this process decodes.
            time_limit: seconds per batch, with workers. A file that is being read when they are over, or that crashes
                its decoder, is skipped as unusable. Without workers it hangs or crashes this process.
            shard: shard of each batch to return, see `shard_of`.

        Raises:
            ValueError: a batch is not divisible by the number of shards.
        """
        numbers = itertools.count(start) if stop is None else range(start, stop)
        make = partial(self.shard_of, shard=shard)
        for size, used in ((self.batch_size, bool(self.videos)), (self.image_batch_size, self.image_fraction > 0)):
            if used:
                shard_rows(shard, size)  # fail now, not at the first such batch
        self._open_store(workers, time_limit)  # before the processes start, so that they find it
        if not workers:
            yield from map(make, numbers)
            return
        with DecodePool(make, workers, time_limit, _batch_name) as pool:
            for number, batch in pool.imap(numbers):
                yield self._again(make, number, batch, time_limit) if isinstance(batch, VideoError) else batch

    def _again(self, make: Callable[[int], Tensor], number: int, error: VideoError, time_limit: float) -> Tensor:
        """Make batch `number` again, without the file whose decoding crashed or hung its process."""
        answer: Tensor | VideoError = error
        while isinstance(answer, VideoError):
            culprit = (self._reading == number + 1).nonzero().flatten().tolist()
            if not culprit:
                raise answer
            self._reading[culprit] = 0
            self._bad[culprit] = True
            warnings.warn(f"skipped from now on: {VideoError(self.paths[culprit[0]], answer.reason)}", stacklevel=3)
            with DecodePool(make, 1, time_limit, _batch_name) as spare:
                _, answer = next(spare.imap([number]))
        return answer

    def _open_store(self, workers: int = 0, time_limit: float = 600) -> None:
        """Fill and open the cache, if there is one and it is not open."""
        if self._cache is None or self._store is not None or not self.videos:
            return
        add_videos(self._cache, self.videos, self._cache_gb, workers, time_limit)
        self._store = YUVStore(self._cache)
        stored = {path: self._store.find(path) for path in self.videos}
        self._stored = {path: video for path, video in stored.items() if video is not None}

    def _draw(self, rng: np.random.Generator, number: int) -> np.ndarray | StoredWindow:
        """Read a random window of a random usable file for batch `number`: uint8 [T,H,W,3], or a `StoredWindow`."""
        image = self.is_image_batch(number)
        shares, first = (self.image_shares, len(self.videos)) if image else (self.video_shares, 0)
        bad = self._bad[first : first + len(shares)]
        while not bad.all():
            i, position = int(np.searchsorted(shares, rng.random(), side="right")), rng.random()
            if bad[i]:
                continue
            path = self.paths[first + i]
            self._reading[first + i] = number + 1
            try:
                whole = image or self.segments[i] is None
                read = self._read if whole else partial(self._read, segment=self.segments[i])
                return read(path, position, image)
            except VideoError as e:
                bad[i] = True
                warnings.warn(f"skipped from now on: {e}", stacklevel=2)
            finally:
                self._reading[first + i] = 0
        raise VideoError(self.paths[first], f"none of the {len(shares)} {'images' if image else 'videos'} is usable")

    def _read(
        self, path: str, position: float, image: bool, segment: Segment | None = None
    ) -> np.ndarray | StoredWindow:
        choose = partial(window_indices, path=path, frames=self.frames, fps=self.fps, position=position)
        choose = partial(choose_in_segment, path=path, segment=segment, choose=choose)
        window: np.ndarray | StoredWindow
        if image:
            with PyAVReader(path) as reader:
                window = reader.frames([0])
        elif video := self._stored.get(path):
            window = StoredWindow(video, choose(video.timestamps, video.fps))
        else:
            window = read_selection(path, choose, reader=self.reader).frames
        short = min(_sides(window))
        if self.size is None and short < self.crop:
            raise VideoError(path, f"a short side of {short} pixels is less than crop={self.crop}")
        if self.size and self.size[0] < self.size[1] and short * MAX_ENLARGEMENT < self.size[0]:
            raise VideoError(path, f"a short side of {short} pixels is too small for size={self.size[0]}")
        return window

    def _crop(self, window: np.ndarray | StoredWindow, rng: np.random.Generator) -> Tensor:
        """Cut a random crop, float32 [3,T,crop,crop] in [-1, 1]. Only the crop is resized, not the whole frame."""
        height, width = _sides(window)
        short = min(height, width)
        if self.size is None:
            target = short
        else:
            low, high = self.size
            if low < high:
                high = min(high, int(short * MAX_ENLARGEMENT))
            target = int(rng.integers(low, high, endpoint=True))
        # Even, so that the crop of a stored video covers whole chroma samples.
        side = 2 * min(short // 2, round(self.crop * short / target / 2))
        top, left = (2 * int(rng.integers((length - side) // 2, endpoint=True)) for length in (height, width))
        mirror = self.flip and rng.random() < 0.5
        if isinstance(window, StoredWindow):
            assert self._store is not None  # the window comes from it
            return self._store.crop(*window, top, left, side, self.crop, mirror)
        crop_THWC = window[:, top : top + side, left : left + side]
        clip_CTHW = frames_to_video(np.ascontiguousarray(crop_THWC[:, :, ::-1] if mirror else crop_THWC))
        if side == self.crop:
            return clip_CTHW
        clip_TCHW = F.interpolate(clip_CTHW.transpose(0, 1), (self.crop, self.crop), mode="bicubic", antialias=True)
        return clip_TCHW.clamp_(-1, 1).transpose(0, 1)


def _batch_name(number: int) -> str:
    return f"batch {number}"


def _sides(window: np.ndarray | StoredWindow) -> tuple[int, int]:
    """Return (height, width) of the frames in pixels."""
    return window.size if isinstance(window, StoredWindow) else window.shape[1:3]


def _names(annotations: str | Path, split: str | None) -> dict[str, list[Segment | None]]:
    """Read the normalized paths in an annotation file, and the segments of each; None is the whole file."""
    table = of_split(read_annotations(annotations), split, annotations)
    if "path" not in table:
        raise ValueError(f"{annotations} lists videos by id: give a list of paths below the root")
    names: dict[str, list[Segment | None]] = {}
    for name, segment in zip(table["path"], ids_and_segments(table)[1], strict=True):
        segments = names.setdefault(os.path.normpath(name), [])
        segments += [] if segment in segments else [segment]
    return names


def _find(
    root: Root, suffixes: tuple[str, ...], names: dict[str, list[Segment | None]] | None
) -> tuple[list[str], list[Segment | None], np.ndarray]:
    """Find files below `root` by suffix and among `names`.

    Returns:
        (sorted paths, one for each segment of a file; the segments; the cumulative share of each).
    """
    roots = root if isinstance(root, dict) else {r: None for r in ([root] if isinstance(root, str | Path) else root)}
    found: list[tuple[str, Segment | None]] = []
    shares: list[float] = []
    for folder, share in roots.items():
        files: dict[str, list[Segment | None]] = {file: [None] for file in find_media(folder, suffixes)}
        if names is not None:
            files = _named(list(files), folder, names, suffixes)
        matches = [(file, segment) for file, segments in files.items() for segment in segments]
        found += matches
        shares += [1.0 if share is None else share / max(len(matches), 1)] * len(matches)
    cumulative = np.cumsum(shares)
    chosen, segments = [file for file, _ in found], [segment for _, segment in found]
    return chosen, segments, cumulative / cumulative[-1] if found else cumulative


def _named(
    files: list[str], folder: str | Path, names: dict[str, list[Segment | None]], suffixes: tuple[str, ...]
) -> dict[str, list[Segment | None]]:
    """Select the files of a folder that are named in annotations, and return the segments of each, sorted by file.

    A name may be a path below the folder, an absolute path, a link to the file, or another of its `spellings`. Named
    files that were left out as hidden are added.
    """
    inside = {os.path.relpath(file, folder): file for file in files}
    found = {inside[name]: [*segments] for name, segments in names.items() if name in inside}
    if left := [name for name in names if name not in inside and name.lower().endswith(suffixes)]:
        listed = {os.path.realpath(file): file for file in files}
        for name in left:
            paths = (os.path.join(folder, spelling) for spelling in (name, *spellings(name)))
            path = next(filter(os.path.isfile, paths), None)
            if path is not None and (real := os.path.realpath(path)) in listed:
                found.setdefault(listed[real], []).extend(names[name])
            elif path is not None and not os.path.relpath(path, folder).startswith(".."):
                found.setdefault(path, []).extend(names[name])
    return {file: list(dict.fromkeys(found[file])) for file in sorted(found)}
