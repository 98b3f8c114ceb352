"""Training batches for a tokenizer out of folders of videos and images."""

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

from vidtok.datasets.annotations import read_annotations
from vidtok.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES, PyAVReader
from vidtok.datasets.frames import frames_to_video
from vidtok.datasets.loading import WHOLE, DecodePool, Shard, check_clip, check_counts, shard_rows
from vidtok.datasets.seek import read_window, window_indices
from vidtok.datasets.sources import find_media, of_split
from vidtok.datasets.yuv_store import StoredVideo, YUVStore, add_videos
from vidtok.errors import VideoError

Root = str | Path | Sequence[str | Path] | dict[str | Path, float]

# Footage that is enlarged has no detail to learn: its blur would teach the decoder to blur.
MAX_ENLARGEMENT = 9 / 8


class StoredWindow(NamedTuple):
    """Some frames of a stored video. indices: int64 [T]."""

    video: StoredVideo
    indices: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.video.height, self.video.width


class ClipFolder(Dataset):
    """Batch i of an endless run over folders of videos and images, as a pure function of (seed, i).

    That is the whole state: any number of workers gives the same batches, and a run resumes at `loader(start=n)`.
    `dataset[i]` is float32 in [-1, 1]: [batch_size, 3, frames, crop, crop] of videos, or, for `image_fraction` of all
    batches evenly spread, [image_batch_size, 3, 1, crop, crop] of images. Each window has random numbers of its own, so
    that a process can make only its part of a batch.

    root: a folder (searched recursively), several, or {folder: share of the video clips and of the images}.
    annotations: a file that names, by their paths below the root, the files to use (see `read_annotations`; None, all);
    split: which of its rows, where it has a column of splits.
    stride: of the tokenizer to train, (s_t, s_h, s_w). frames: 1 + a multiple of s_t. crop: pixels, a multiple of s_h
    and s_w. size: short side before the crop; (low, high), drawn per crop, but never more than 9/8 of the file's own;
    None, native.
    crops_per_clip: how many crops share one decoded window (they must divide the batch sizes); these follow each other
    in the batch, so that they come in the same part of it.
    flip: mirror half of the crops. fps: resample by time (see `read_video`); None, native. images: use images too.
    cache: folder for decoded videos (`vidtok.datasets.yuv_store`). `loader` or the first batch decodes each video into
    it once, instead of each window when it is drawn. cache_gb: its bound (1e9 bytes). Up to it a random choice of
    videos is stored; the others are decoded per window. Files, windows and crops are drawn the same with and without
    a cache; the pixels of stored videos differ by rounding.
    A file that can't be used (broken, too short, too small) is warned about once, listed in `skipped`, and another
    one drawn. Raises ValueError for bad arguments and for folders that hold nothing to train on.
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
    ):
        check_clip(frames, crop, stride)
        image_batch_size = image_batch_size or 4 * batch_size
        check_counts(batch_size=batch_size, image_batch_size=image_batch_size, crops_per_clip=crops_per_clip)
        if batch_size % crops_per_clip or image_batch_size % crops_per_clip:
            raise ValueError(f"crops_per_clip={crops_per_clip} must divide {batch_size=} and {image_batch_size=}")
        self.size = (size, size) if isinstance(size, int) else size
        if self.size and self.size[0] < crop:
            raise ValueError(f"crop={crop} does not fit into size={size}")
        self.frames, self.crop, self.crops_per_clip, self.flip, self.fps = frames, crop, crops_per_clip, flip, fps
        self.seed, self.batch_size, self.image_batch_size = seed, batch_size, image_batch_size
        names = None if annotations is None else _names(annotations, split)
        self.videos, self.video_shares = _find(root, VIDEO_SUFFIXES, names)
        self.images, self.image_shares = _find(root, IMAGE_SUFFIXES if images else (), names)
        if not self.videos and not self.images:
            which = "" if annotations is None else f" that {annotations} names"
            raise ValueError(f"no video{' or image' if images else ''}{which} in {root}")
        self.image_fraction = 0.0 if not self.images else 1.0 if not self.videos else image_fraction
        self._cache, self._cache_gb = cache, cache_gb
        self._store: YUVStore | None = None
        self._stored: dict[str, StoredVideo] = {}
        # Shared memory: a worker's finding is everyone's, and the main process can count.
        self.paths = self.videos + self.images
        self._bad = torch.zeros(len(self.paths), dtype=torch.bool, device="cpu").share_memory_()
        # 1 + number of the batch.
        self._reading = torch.zeros(len(self.paths), dtype=torch.int64, device="cpu").share_memory_()

    @property
    def skipped(self) -> list[Path]:
        """Files found unusable so far, in any worker."""
        return [Path(path) for path, is_bad in zip(self.paths, self._bad, strict=True) if is_bad]

    def summary(self) -> str:
        return f"{len(self.skipped)} files skipped"

    def is_image_batch(self, index: int) -> bool:
        """Whether batch `index` holds images."""
        return int((index + 1) * self.image_fraction) > int(index * self.image_fraction)

    def __getitem__(self, index: int) -> Tensor:
        return self.shard_of(index, WHOLE)

    def shard_of(self, index: int, shard: Shard) -> Tensor:
        """The rows that are `part` of `dataset[index]`; only the windows that they are cut from are decoded.

        Raises ValueError where the batch doesn't divide into such parts.
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
        """Batches start, start+1, ... up to `stop` (None: for ever), decoded ahead by `workers` processes.

        part: of each batch, see `shard_of`. time_limit: seconds for it. With workers, the file that is being read when
        they are over, or that crashes its decoder, is one that can't be used; without, it hangs or crashes this
        process.
        """
        numbers = itertools.count(start) if stop is None else range(start, stop)
        make = partial(self.shard_of, shard=shard)
        for size, used in ((self.batch_size, bool(self.videos)), (self.image_batch_size, self.image_fraction > 0)):
            if used:
                shard_rows(shard, size)  # now, not when its turn comes
        self._open_store(workers, time_limit)  # here, so that the processes below find it
        if not workers:
            yield from map(make, numbers)
            return
        with DecodePool(make, workers, time_limit, "batch {}".format) as pool:
            for number, batch in pool.imap(numbers):
                yield self._again(make, number, batch, time_limit) if isinstance(batch, VideoError) else batch

    def _again(self, make: Callable[[int], Tensor], number: int, error: VideoError, time_limit: float) -> Tensor:
        """A batch (what `make` makes of it) that took its process along, without the file it was reading."""
        while isinstance(error, VideoError):
            culprit = (self._reading == number + 1).nonzero().flatten().tolist()
            if not culprit:
                raise error
            self._reading[culprit] = 0
            self._bad[culprit] = True
            warnings.warn(f"skipped from now on: {VideoError(self.paths[culprit[0]], error.reason)}", stacklevel=3)
            with DecodePool(make, 1, time_limit, "batch {}".format) as spare:
                _, error = next(spare.imap([number]))
        return error

    def _open_store(self, workers: int = 0, time_limit: float = 600) -> None:
        """Fill the cache, unless there is none or this has been done."""
        if self._cache is None or self._store is not None or not self.videos:
            return
        add_videos(self._cache, self.videos, self._cache_gb, workers, time_limit)
        self._store = YUVStore(self._cache)
        found = {path: self._store.find(path) for path in self.videos}
        self._stored = {path: video for path, video in found.items() if video is not None}

    def _draw(self, rng: np.random.Generator, number: int) -> np.ndarray | StoredWindow:
        """A random window of a random usable file for batch `number`, uint8 [T,H,W,3] where it isn't stored."""
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
                return self._read(path, position, image)
            except VideoError as e:
                bad[i] = True
                warnings.warn(f"skipped from now on: {e}", stacklevel=2)
            finally:
                self._reading[first + i] = 0
        raise VideoError(
            self.paths[first], f"and all {len(shares)} other {'images' if image else 'videos'} are unusable"
        )

    def _read(self, path: str, position: float, image: bool) -> np.ndarray | StoredWindow:
        if image:
            with PyAVReader(path) as reader:
                window = reader.frames([0])
        elif video := self._stored.get(path):
            indices = window_indices(video.timestamps, video.fps, path, self.frames, self.fps, position)
            window = StoredWindow(video, indices)
        else:
            window = read_window(path, self.frames, self.fps, position)
        short = min(_sides(window))
        if self.size is None and short < self.crop:
            raise VideoError(path, f"{short} pixels are less than a crop of {self.crop}")
        if self.size and self.size[0] < self.size[1] and short * MAX_ENLARGEMENT < self.size[0]:
            raise VideoError(path, f"{short} pixels are too few for a short side of {self.size[0]}")
        return window

    def _crop(self, window: np.ndarray | StoredWindow, rng: np.random.Generator) -> Tensor:
        """A random crop, float32 [3,T,crop,crop]. Only the crop is resized, not the picture around it."""
        height, width = _sides(window)
        short = min(height, width)
        if self.size is None:
            target = short
        else:
            low, high = self.size
            target = rng.integers(low, high if low == high else min(high, int(short * MAX_ENLARGEMENT)), endpoint=True)
        # Even, so that the crop of a stored video has whole samples of chroma.
        side = 2 * min(short // 2, round(self.crop * short / target / 2))
        top, left = (2 * rng.integers((length - side) // 2, endpoint=True) for length in (height, width))
        mirror = self.flip and rng.random() < 0.5
        if isinstance(window, StoredWindow):
            return self._store.crop(*window, top, left, side, self.crop, mirror)
        crop_THWC = window[:, top : top + side, left : left + side]
        clip_CTHW = frames_to_video(np.ascontiguousarray(crop_THWC[:, :, ::-1] if mirror else crop_THWC))
        if side == self.crop:
            return clip_CTHW
        clip_TCHW = F.interpolate(clip_CTHW.transpose(0, 1), (self.crop, self.crop), mode="bicubic", antialias=True)
        return clip_TCHW.clamp_(-1, 1).transpose(0, 1)


def _sides(window: np.ndarray | StoredWindow) -> tuple[int, int]:
    """(height, width) of its frames."""
    return window.size if isinstance(window, StoredWindow) else window.shape[1:3]


def _names(annotations: str | Path, split: str | None) -> set[str]:
    """The paths in an annotation file."""
    table = of_split(read_annotations(annotations), split, annotations)
    if "path" not in table:
        raise ValueError(f"{annotations}: names videos by their ids, and paths below the root are needed")
    return set(map(os.path.normpath, table["path"]))


def _find(root: Root, suffixes: tuple[str, ...], names: set[str] | None) -> tuple[list[str], np.ndarray]:
    """Files below `root` by suffix and among `names`, sorted, and the cumulative share of each."""
    roots = root if isinstance(root, dict) else {r: None for r in ([root] if isinstance(root, str | Path) else root)}
    files: list[str] = []
    shares: list[float] = []
    for folder, share in roots.items():
        found = find_media(folder, suffixes)
        if names is not None:
            found = [file for file in found if os.path.relpath(file, folder) in names]
        files += found
        shares += [1.0 if share is None else share / max(len(found), 1)] * len(found)
    cumulative = np.cumsum(shares)
    return files, cumulative / cumulative[-1] if files else cumulative
