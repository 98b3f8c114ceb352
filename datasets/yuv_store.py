"""Cache of decoded videos in one memory-mapped file, from which training crops are cut.

A cache folder holds `frames.yuv` and `index.npz`. `frames.yuv` contains the frames of all videos one after the other,
each as planar 4:2:0: Y [H,W], then U and V [ceil(H/2),ceil(W/2)], uint8. `index.npz` holds the position of each video.
A frame is contiguous, so that a window of 17 frames is one range of pages. The file only grows: bytes that the index
refers to never change, and processes may read it while another one adds videos.
"""

import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.frames import display_matrix
from vidtok.datasets.loading import DecodePool
from vidtok.errors import VideoError
from vidtok.files import replacing

# By FFmpeg's number of the color matrix; 0, 2 and 5 are read as BT.601, as swscale does for untagged videos.
MATRICES = {0: 601, 1: 709, 2: 601, 5: 601, 6: 601, 9: 2020}
LUMA_WEIGHTS = {601: (0.299, 0.114), 709: (0.2126, 0.0722), 2020: (0.2627, 0.0593)}  # weights of red and of blue
FULL_RANGE = int(ColorRange.JPEG)
SAVE_SECONDS = 10  # between two saves of the index; a kill loses at most the decoding of that time


@dataclass(frozen=True)
class StoredVideo:
    """Entry of a video in `frames.yuv`.

    Attributes:
        offset: position of its first byte.
        frames: number of frames; 0 for a file that could not be decoded to its end.
        height, width: in pixels, as shown (rotation applied).
        fps: average frames per second.
        matrix: color matrix: 601, 709 or 2020.
        full_range: whether luma is 0..255 instead of 16..235.
        timestamps: float64 [frames], seconds from the first frame.
    """

    offset: int
    frames: int
    height: int
    width: int
    fps: float
    matrix: int
    full_range: bool
    timestamps: np.ndarray

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width + 2 * (-(-self.height // 2) * -(-self.width // 2))

    @property
    def end(self) -> int:
        return self.offset + self.frames * self.frame_bytes


UNREADABLE = StoredVideo(0, 0, 0, 0, 0.0, 601, False, np.zeros(0))


class YUVStore:
    """Read-only view of a cache folder: memory-mapped, or copied to a device as one uint8 tensor.

    It is pickled as its folder and index; every worker process maps the file itself.

    Args:
        folder: the cache, filled by `add_videos`.
        device: device to which the whole file is copied, and on which crops are cut, resized and converted; None, the
            file is memory-mapped.
    """

    def __init__(self, folder: str | Path, device: str | torch.device | None = None):
        self.folder, self.device = Path(folder), None if device is None else torch.device(device)
        self._videos = _read_index(self.folder)
        self._bytes: Tensor | None = None

    def __len__(self) -> int:
        return sum(video.frames > 0 for video in self._videos.values())

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None}

    def find(self, path: str | Path) -> StoredVideo | None:
        """Return the stored video of a file in its current version; None if it is not stored."""
        key = _key(path)
        video = None if key is None else self._videos.get(key)
        return video if video is not None and video.frames else None

    def planes(self, video: StoredVideo) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of Y [T,H,W], U and V [T,ceil(H/2),ceil(W/2)], uint8."""
        if self._bytes is None:
            size = max(v.end for v in self._videos.values())
            # Read-only and shared: for a private mapping Linux requires as much free memory as the file is large.
            mapped_file = np.memmap(self.folder / "frames.yuv", np.uint8, "r", shape=(size,))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
                mapped = torch.from_numpy(mapped_file)
            self._bytes = mapped if self.device is None else mapped.to(self.device, copy=True)
        frames = self._bytes[video.offset : video.end].view(video.frames, video.frame_bytes)
        luma, half = video.height * video.width, (-(-video.height // 2), -(-video.width // 2))
        y, u, v = frames.split((luma, half[0] * half[1], half[0] * half[1]), dim=1)
        return y.unflatten(1, (video.height, video.width)), u.unflatten(1, half), v.unflatten(1, half)

    def crop(
        self, video: StoredVideo, indices: np.ndarray, top: int, left: int, side: int, size: int, mirror: bool = False
    ) -> Tensor:
        """Crop a square from selected frames and resize it -> float32 [3,T,size,size] in [-1, 1], RGB.

        Each plane is resized separately (bicubic, antialiased), chroma to the size of luma, before color conversion.

        Args:
            video: from `find`.
            indices: int64 [T], frame numbers.
            top, left, side: position and side of the square in pixels, all even.
            size: side of the output in pixels.
            mirror: whether to flip horizontally.

        Raises:
            ValueError: top, left or side is odd.
        """
        if top % 2 or left % 2 or side % 2:
            raise ValueError(f"{top=}, {left=} and {side=} must be even: chroma has half the resolution")
        # The CPU resizes uint8 faster; accelerators have no kernel for it.
        dtype = torch.uint8 if self.device is None else torch.float32
        y, u, v = (
            _cut(plane, indices.tolist(), top // step, left // step, side // step, size, dtype)
            for plane, step in zip(self.planes(video), (1, 2, 2), strict=True)
        )
        if mirror:
            y, u, v = y.flip(-1), u.flip(-1), v.flip(-1)
        return yuv_to_video(y, u, v, video.matrix, video.full_range)


def _cut(
    plane_THW: Tensor, indices: list[int], top: int, left: int, side: int, size: int, dtype: torch.dtype
) -> Tensor:
    """Crop a square from selected frames of a plane and resize it -> `dtype` [T,size,size] in 0..255."""
    view_THW = plane_THW[:, top : top + side, left : left + side]
    # Four frames are treated as the channels of one image: the uint8 kernel computes four anyway, and this takes 0.4
    # times as long.
    padded = indices + indices[-1:] * (-len(indices) % 4)
    square_THW = torch.stack([view_THW[i] for i in padded]).to(dtype)
    if side != size:
        square_NCHW = square_THW.view(-1, 4, side, side)
        resized_NCHW = F.interpolate(square_NCHW, (size, size), mode="bicubic", antialias=True)
        square_THW = resized_NCHW.clamp_(0, 255).flatten(0, 1)
    return square_THW[: len(indices)]


def yuv_to_video(y_THW: Tensor, u_THW: Tensor, v_THW: Tensor, matrix: int, full_range: bool) -> Tensor:
    """Convert YUV planes of equal size, values 0..255, to RGB, float32 [3,T,H,W] in [-1, 1].

    Args:
        matrix: 601, 709 or 2020.
        full_range: whether luma is 0..255 instead of 16..235.
    """
    red, blue = LUMA_WEIGHTS[matrix]
    black, luma, chroma = (0, 2 / 255, 4 / 255) if full_range else (16, 2 / 219, 4 / 224)
    video_CTHW = torch.empty((3, *y_THW.shape), dtype=torch.float32, device=y_THW.device)
    r, g, b = video_CTHW
    # With Y, U, V scaled to -1..1: R = Y + (1 - red) V, B = Y + (1 - blue) U, G = (Y - red R - blue B) / green.
    torch.mul(y_THW, luma, out=g).sub_(1 + black * luma)
    u_THW, v_THW = u_THW * (chroma * (1 - blue)), v_THW * (chroma * (1 - red))
    torch.add(g, v_THW, out=r).sub_(128 * chroma * (1 - red))
    torch.add(g, u_THW, out=b).sub_(128 * chroma * (1 - blue))
    g.sub_(r, alpha=red).sub_(b, alpha=blue).div_(1 - red - blue)
    return video_CTHW.clamp_(-1, 1)


def add_videos(
    folder: str | Path,
    paths: Iterable[str],
    limit_gb: float | None = None,
    workers: int = 0,
    time_limit: float = 600,
) -> None:
    """Decode videos into a cache folder, unless they are stored already.

    If they don't all fit, a random subset is stored, the same at every call. A video that can't be decoded to its end
    is recorded as unreadable and not tried again. One process at a time adds videos; others wait for it and reuse them.
    After a kill, the next call continues from the last saved index.

    Args:
        folder: the cache, created if missing.
        paths: the videos.
        limit_gb: maximal size of the file in GB (1e9 bytes); None, no limit.
        workers: number of decoding processes; 0, this process.
        time_limit: seconds per video, with workers; a video that takes longer is recorded as unreadable.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    limit = float("inf") if limit_gb is None else limit_gb * 1e9
    with FileLock(folder / "lock"):
        for remains in folder.glob("part-*.yuv"):  # left by a killed process
            remains.unlink()
        videos = _read_index(folder)
        keys = {path: key for path in sorted(set(paths)) if (key := _key(path)) is not None}
        order = [list(keys)[i] for i in np.random.default_rng(0).permutation(len(keys))]
        missing = [path for path in order if keys[path] not in videos]
        if not missing:
            return
        end, saved = max((video.end for video in videos.values()), default=0), time.monotonic()
        with open(os.open(folder / "frames.yuv", os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            file.truncate(end)  # drops what a killed process wrote after it had last saved the index
            file.seek(end)
            jobs = ((path, str(folder / f"part-{i}.yuv"), limit - end) for i, path in enumerate(missing))
            try:
                for (path, part, _), video in _decode_all(jobs, workers, time_limit):
                    if video is None or end + video.frames * video.frame_bytes > limit:
                        break
                    if video.frames:
                        with open(part, "rb") as decoded:
                            shutil.copyfileobj(decoded, file, 1 << 22)
                    Path(part).unlink(missing_ok=True)
                    videos[keys[path]] = video = replace(video, offset=end)
                    end = video.end
                    if time.monotonic() - saved > SAVE_SECONDS:
                        _save_index(folder, videos, file)
                        saved = time.monotonic()
            finally:
                _save_index(folder, videos, file)
        for remains in folder.glob("part-*.yuv"):  # decoded ahead, after the video that didn't fit
            remains.unlink()


Job = tuple[str, str, float]


def _decode_all(jobs: Iterable[Job], workers: int, time_limit: float) -> Iterator[tuple[Job, StoredVideo | None]]:
    if not workers:
        yield from ((job, _decode(job)) for job in jobs)
        return
    with DecodePool(_decode, workers, time_limit, lambda job: job[0]) as pool:
        for job, video in pool.imap(jobs):
            yield job, UNREADABLE if isinstance(video, VideoError) else video


def _decode(job: Job) -> StoredVideo | None:
    """Decode a video frame by frame into its own file; return None if that exceeds the limit of bytes."""
    path, part, limit = job
    times: list[float] = []
    try:
        with open(part, "wb") as file, PyAVReader(path) as reader:
            for timestamp, frame in reader.iter_decoded():
                if not times:
                    height, width = reader.size
                    is_direct, layout = _is_direct(frame), _layout(frame)
                    matrix = MATRICES[int(frame.colorspace)] if is_direct else 601
                    full = is_direct and _is_full_range(frame)
                if not is_direct or _layout(frame) != layout:
                    frame = _to_yuv(reader.convert(frame, None), matrix, full)
                for plane in _planes(frame):
                    file.write(np.ascontiguousarray(plane).data)
                if file.tell() > limit:
                    return None
                times.append(timestamp)
            return StoredVideo(0, len(times), height, width, reader.fps, matrix, full, np.array(times))
    except (VideoError, av.error.FFmpegError):  # the latter for colors that swscale can't convert
        return UNREADABLE


def _is_direct(frame: VideoFrame) -> bool:
    """Return whether decoded planes can be stored unchanged: upright 8-bit 4:2:0 with one of `MATRICES`."""
    known = frame.format.name in ("yuv420p", "yuvj420p") and int(frame.colorspace) in MATRICES
    return known and display_matrix(frame) is None


def _is_full_range(frame: VideoFrame) -> bool:
    return frame.format.name == "yuvj420p" or int(frame.color_range) == FULL_RANGE


def _layout(frame: VideoFrame) -> tuple:
    """Return the properties that frames must share for their planes to be stored unchanged."""
    return frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range)


def _to_yuv(rgb_HWC: np.ndarray, matrix: int, full: bool) -> VideoFrame:
    spaces = {601: Colorspace.ITU601, 709: Colorspace.ITU709, 2020: 9}
    return VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=spaces[matrix],
        dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
    )


def _planes(frame: VideoFrame) -> list[np.ndarray]:
    """Return Y [H,W], U and V [ceil(H/2),ceil(W/2)] of a 4:2:0 frame, without row padding."""
    planes = []
    for plane, step in zip(frame.planes, (1, 2, 2), strict=True):
        rows = np.frombuffer(cast(bytes, plane), np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: -(-frame.height // step), : -(-frame.width // step)])
    return planes


def _key(path: str | Path) -> str | None:
    """Return a key of the file's current version (path, size, modification time); None if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"


FIELDS = ("offset", "frames", "height", "width", "fps", "matrix", "full_range")


def _save_index(folder: Path, videos: dict[str, StoredVideo], file: BinaryIO) -> None:
    """Flush the frames to disk, then write the index and rename it into place."""
    file.flush()
    os.fsync(file.fileno())
    columns: dict[str, Any] = {name: np.array([getattr(video, name) for video in videos.values()]) for name in FIELDS}
    timestamps = np.concatenate([video.timestamps for video in videos.values()] or [np.zeros(0)])
    with replacing(folder / "index.npz", locked=True) as new, open(new, "wb") as index:
        np.savez(index, keys=np.array(list(videos), dtype=str), timestamps=timestamps, **columns)


def _read_index(folder: Path) -> dict[str, StoredVideo]:
    """Read the videos by key, in their order in the file."""
    if not (folder / "index.npz").exists():
        return {}
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        columns = [index[name].tolist() for name in FIELDS]
        keys, timestamps = index["keys"].tolist(), index["timestamps"]
    videos, start = {}, 0
    for key, *values in zip(keys, *columns, strict=True):
        fields = dict(zip(FIELDS, values, strict=True))
        videos[key] = StoredVideo(**fields, timestamps=timestamps[start : start + fields["frames"]])
        start += fields["frames"]
    return videos
