"""Decoded videos in one memory-mapped file, from which training crops are cut.

A cache folder holds `frames.yuv`, the frames of all videos one after the other, each as planar 4:2:0 (Y, then U, then V:
H W + 2 ceil(H/2) ceil(W/2) bytes, uint8), and `index.npz`, which says where each video lies. A frame is contiguous, so
that a window of 17 frames is one range of pages. The file only grows: bytes that the index names never change, so that
processes may read it while another one adds videos.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from .error import VideoError
from .picture import display_matrix, to_rgb
from .reader_pyav import PyAVReader

# By FFmpeg's number of a stream's matrix; 0, 2 and 5 are read as BT.601, as swscale does where nothing is tagged.
MATRICES = {0: 601, 1: 709, 2: 601, 5: 601, 6: 601, 9: 2020}
LUMA_WEIGHTS = {601: (0.299, 0.114), 709: (0.2126, 0.0722), 2020: (0.2627, 0.0593)}  # of red and of blue
FULL_RANGE = int(ColorRange.JPEG)
SAVE_SECONDS = 10  # between two saves of the index: what a kill can cost


@dataclass(frozen=True)
class StoredVideo:
    """One video in `frames.yuv`.

    offset: of its first byte. frames: how many; 0 for a file that could not be decoded to its end. height, width: pixels
    as shown (rotation applied). fps: average frames per second. matrix: 601, 709 or 2020. full_range: luma 0..255, not
    16..235. timestamps: float64 [frames], seconds from the first frame.
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


class YUVStore:
    """The videos of a cache folder, read-only: memory-mapped, or as one uint8 tensor on an accelerator.

    folder: filled by `add_videos`. device: where crops are cut, resized and converted; anything but the CPU takes a copy
    of the whole file. Pickles as its folder and index, so that every worker process maps the file itself.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        self.folder, self.device = Path(folder), torch.device(device)
        self._videos = _read_index(self.folder)
        self._bytes: Tensor | None = None

    def __len__(self) -> int:
        return sum(video.frames > 0 for video in self._videos.values())

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None}

    def find(self, path: str | Path) -> StoredVideo | None:
        """The stored frames of a file as it is now; None where there are none."""
        try:
            video = self._videos.get(_key(path))
        except OSError:
            return None
        return video if video is not None and video.frames else None

    def planes(self, video: StoredVideo) -> tuple[Tensor, Tensor, Tensor]:
        """Views of Y [T,H,W], U and V [T,ceil(H/2),ceil(W/2)], uint8."""
        if self._bytes is None:
            size = max(v.end for v in self._videos.values())
            # Not shared: the mapping is private, so that nothing written to the tensor reaches the file.
            mapped = torch.from_file(str(self.folder / "frames.yuv"), shared=False, size=size, dtype=torch.uint8)
            self._bytes = mapped.to(self.device)
        frames = self._bytes[video.offset : video.end].view(video.frames, video.frame_bytes)
        luma, half = video.height * video.width, (-(-video.height // 2), -(-video.width // 2))
        y, u, v = frames.split((luma, half[0] * half[1], half[0] * half[1]), dim=1)
        return y.unflatten(1, (video.height, video.width)), u.unflatten(1, half), v.unflatten(1, half)

    def crop(
        self, video: StoredVideo, indices: np.ndarray, top: int, left: int, side: int, size: int, mirror: bool = False
    ) -> Tensor:
        """Cut a square out of some frames and resize it -> float32 [3,T,size,size] in [-1, 1], RGB.

        Each plane is resized by itself (bicubic, antialiased), chroma to the size of luma, before colors are converted.
        indices: int64 [T] of frames. top, left, side: of the square in pixels, all even. mirror: left to right.
        """
        if top % 2 or left % 2 or side % 2:
            raise ValueError(f"{top=}, {left=} and {side=} must be even: chroma has half the resolution")
        y, u, v = (
            _cut(plane, indices, top // step, left // step, side // step, size)
            for plane, step in zip(self.planes(video), (1, 2, 2), strict=True)
        )
        if mirror:
            y, u, v = y.flip(-1), u.flip(-1), v.flip(-1)
        return yuv_to_video(y, u, v, video.matrix, video.full_range)


def _cut(plane_THW: Tensor, indices: np.ndarray, top: int, left: int, side: int, size: int) -> Tensor:
    """The square of some frames, resized -> [T,size,size]; uint8 on the CPU, float32 in 0..255 elsewhere."""
    view_THW = plane_THW[:, top : top + side, left : left + side]
    square_THW = torch.stack([view_THW[i] for i in indices.tolist()])
    if square_THW.device.type != "cpu":
        square_THW = square_THW.float()  # uint8 resizing is a kernel of the CPU
    if side == size:
        return square_THW
    resized_TCHW = F.interpolate(square_THW[:, None], (size, size), mode="bicubic", antialias=True)
    return resized_TCHW[:, 0].clamp_(0, 255)


def yuv_to_video(y_THW: Tensor, u_THW: Tensor, v_THW: Tensor, matrix: int, full_range: bool) -> Tensor:
    """YUV of equal sizes, values 0..255 -> RGB, float32 [3,T,H,W] in [-1, 1]."""
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


def add_videos(folder: str | Path, paths: Iterable[str], limit_gb: float | None = None) -> None:
    """Decode the videos that a cache folder lacks into it.

    Where they don't all fit, which ones are stored is random, but the same at every call. A video that can't be decoded
    to its end is noted as such and not tried again. One process at a time adds; others wait for it and find its videos.
    Killed at any time, the next call goes on from the last saved index.

    limit_gb: the file never grows beyond so many GB (1e9 bytes); None, no limit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    limit = float("inf") if limit_gb is None else limit_gb * 1e9
    paths = sorted(set(paths))
    with FileLock(folder / "lock"):
        videos = _read_index(folder)
        end = max((video.end for video in videos.values()), default=0)
        with open(os.open(folder / "frames.yuv", os.O_RDWR | os.O_CREAT, 0o666), "r+b") as handle:
            handle.truncate(end)  # what a killed process wrote after it had last saved the index
            saved = time.monotonic()
            for i in np.random.default_rng(0).permutation(len(paths)):
                try:
                    key = _key(paths[i])
                except OSError:  # gone since the folder was listed
                    continue
                if key in videos:
                    continue
                video = _append(paths[i], handle, end, limit)
                if video is None:
                    break
                videos[key], end = video, video.end
                if time.monotonic() - saved > SAVE_SECONDS:
                    _save_index(folder, videos, handle)
                    saved = time.monotonic()
            handle.truncate(end)
            _save_index(folder, videos, handle)


def _append(path: str, handle: BinaryIO, offset: int, limit: float) -> StoredVideo | None:
    """Decode a video to `offset` of the file, a frame at a time; None where it would go beyond `limit` bytes."""
    handle.seek(offset)
    times = []
    try:
        with PyAVReader(path) as reader:
            for timestamp, frame in reader.iter_decoded():
                if not times:
                    height, width = reader.size
                    is_direct = _is_direct(frame)
                    matrix = MATRICES[int(frame.colorspace)] if is_direct else 601
                    full = is_direct and _is_full_range(frame)
                    layout = _layout(frame)
                if is_direct and _layout(frame) == layout:
                    planes = _planes(frame)
                else:
                    planes = _planes(_to_yuv(to_rgb(frame, *reader.coded_size), matrix, full))
                if handle.tell() + sum(plane.size for plane in planes) > limit:
                    return None
                for plane in planes:
                    handle.write(np.ascontiguousarray(plane))
                times.append(timestamp)
            fps = reader.fps
    except (VideoError, av.error.FFmpegError):  # the latter of colors that swscale can't convert
        return StoredVideo(offset, 0, 0, 0, 0.0, 601, False, np.zeros(0))
    return StoredVideo(offset, len(times), height, width, fps, matrix, full, np.array(times))


def _is_direct(frame: VideoFrame) -> bool:
    """Whether the decoded planes can be stored as they are: upright 4:2:0 of 8 bits by a matrix known here."""
    known = frame.format.name in ("yuv420p", "yuvj420p") and int(frame.colorspace) in MATRICES
    return known and display_matrix(frame) is None


def _is_full_range(frame: VideoFrame) -> bool:
    return frame.format.name == "yuvj420p" or int(frame.color_range) == FULL_RANGE


def _layout(frame: VideoFrame) -> tuple:
    """What all frames of a video must share for their planes to be stored as they are."""
    return frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range)


def _to_yuv(rgb_HWC: np.ndarray, matrix: int, full: bool) -> VideoFrame:
    spaces = {601: Colorspace.ITU601, 709: Colorspace.ITU709, 2020: 9}
    return VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=spaces[matrix],
        dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
    )


def _planes(frame: VideoFrame) -> list[np.ndarray]:
    """Y [H,W], U and V [ceil(H/2),ceil(W/2)] of a 4:2:0 frame, without the padding of its rows."""
    planes = []
    for plane, step in zip(frame.planes, (1, 2, 2), strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: -(-frame.height // step), : -(-frame.width // step)])
    return planes


def _key(path: str | Path) -> str:
    """What tells a file from a changed one. Raises OSError where it is absent."""
    status = os.stat(path)
    return f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"


FIELDS = ("offset", "frames", "height", "width", "fps", "matrix", "full_range")


def _save_index(folder: Path, videos: dict[str, StoredVideo], handle: BinaryIO) -> None:
    """Write the index after the frames that it names, and rename it into place."""
    handle.flush()
    os.fsync(handle.fileno())
    columns = {name: np.array([getattr(video, name) for video in videos.values()]) for name in FIELDS}
    timestamps = np.concatenate([video.timestamps for video in videos.values()] or [np.zeros(0)])
    new = folder / "index.new.npz"
    np.savez(new, keys=np.array(list(videos), dtype=str), timestamps=timestamps, **columns)
    os.replace(new, folder / "index.npz")


def _read_index(folder: Path) -> dict[str, StoredVideo]:
    """The videos by their keys, in the order in which they lie in the file."""
    if not (folder / "index.npz").exists():
        return {}
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        columns = [index[name].tolist() for name in FIELDS]
        keys, timestamps = index["keys"].tolist(), index["timestamps"]
    videos, start = {}, 0
    for key, *values in zip(keys, *columns, strict=True):
        frames = values[1]
        videos[key] = StoredVideo(*values, timestamps[start : start + frames])
        start += frames
    return videos
