"""Operations on frames: conversion from and to [-1, 1], resizing, resampling in time, rotation, deinterlacing, grids.

Legend: B clips, T H W video.
"""

import math
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import torch
from av import VideoFrame
from av.filter import Graph
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from vidtok.inputs import open_binary

Size = int | tuple[int, int] | None


def frames_to_video(frames_THWC: np.ndarray | Tensor) -> Tensor:
    """Convert frames to a video: uint8 [T,H,W,3] -> float32 [3,T,H,W] in [-1, 1]."""
    return normalize_video(torch.as_tensor(frames_THWC).permute(3, 0, 1, 2))


def normalize_video(video: Tensor) -> Tensor:
    """Convert uint8 pixels to contiguous float32 in [-1, 1], on their device; floats are returned unchanged."""
    if video.dtype != torch.uint8:
        return video
    return video.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def video_to_frames(video_CTHW: Tensor) -> np.ndarray:
    """Convert a video to frames: uint8, or float in [-1, 1] (clamped, rounded), [3,T,H,W] -> uint8 [T,H,W,3]."""
    if video_CTHW.dtype != torch.uint8:
        video_CTHW = video_CTHW.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return video_CTHW.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def resize_video(video_CTHW: Tensor, size: Size, multiple: int = 8) -> Tensor:
    """Resize float [3,T,H,W] in [-1, 1] (bicubic, antialiased, keeping the aspect ratio), then center-crop.

    Args:
        size: in pixels. int, the short side becomes `size` and the long side is cropped to a multiple of `multiple`;
            (h, w), the video is resized to cover h x w and cropped to exactly that size; None, native size with both
            sides cropped to a multiple of `multiple`.
        multiple: see `size`.

    Raises:
        ValueError: the crop would be empty.
    """
    height, width = video_CTHW.shape[-2:]
    (new_h, new_w), (cut_h, cut_w) = plan_resize(height, width, size, multiple)
    if (new_h, new_w) != (height, width):
        video_TCHW = F.interpolate(video_CTHW.transpose(0, 1), (new_h, new_w), mode="bicubic", antialias=True)
        video_CTHW = video_TCHW.clamp_(-1, 1).transpose(0, 1)
    top, left = (new_h - cut_h) // 2, (new_w - cut_w) // 2
    return video_CTHW[..., top : top + cut_h, left : left + cut_w].contiguous()


def check_size(size: Size) -> None:
    """Raise ValueError unless `size` is None, a positive int, or a pair of positive ints."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    if size is not None and (len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides)):
        raise ValueError(f"size={size!r}: want None, the short side in pixels, or (height, width), all above 0")


def plan_resize(height: int, width: int, size: Size, multiple: int = 8) -> tuple[tuple[int, int], tuple[int, int]]:
    """Compute (resized (height, width), cropped (height, width)) of frames of height x width; see `resize_video`.

    Raises:
        ValueError: the crop would be empty.
    """
    scale = _scale(height, width, size)
    if size is None:
        resized, cut = (height, width), (height // multiple * multiple, width // multiple * multiple)
    elif isinstance(size, int):
        resized = max(size, round(height * scale)), max(size, round(width * scale))
        cut_h, cut_w = (side if side == size else side // multiple * multiple for side in resized)
        cut = cut_h, cut_w
    else:
        resized = max(size[0], round(height * scale)), max(size[1], round(width * scale))
        cut = size[0], size[1]
    if min(cut) < 1:
        raise ValueError(
            f"size={size} leaves nothing of {height}x{width} pictures (sides are cropped to a multiple of {multiple})"
        )
    return resized, cut


Box = tuple[int, int, int, int]  # (top, left, height, width) in pixels


def _scale(height: int, width: int, size: Size) -> float:
    """Return the scale factor of `plan_resize`, before sides are rounded to whole pixels."""
    if size is None:
        return 1.0
    if isinstance(size, int):
        return size / min(height, width)
    return max(size[0] / height, size[1] / width)


class View(NamedTuple):
    """Region of a frame, and the size at which to read it.

    Attributes:
        box: region of the frame as shown.
        size: (height, width) after resizing.
    """

    box: Box
    size: tuple[int, int]


def plan_view(height: int, width: int, size: Size, multiple: int = 8) -> View:
    """Compute the view that crops before resizing what `resize_video` crops after resizing, for height x width frames.

    Raises:
        ValueError: the crop would be empty.
    """
    resized, cut = plan_resize(height, width, size, multiple)
    scale = _scale(height, width, size)
    box_h, box_w = (
        side if new == kept else max(1, min(side, round(kept / scale)))
        for side, new, kept in zip((height, width), resized, cut, strict=True)
    )
    return View(((height - box_h) // 2, (width - box_w) // 2, box_h, box_w), cut)


OnError = Literal["raise", "keep", "skip"]


class Chunk(NamedTuple):
    """Consecutive frames of a video.

    Attributes:
        frames: uint8 [T,H,W,3], RGB.
        timestamps: float64 [T], seconds from the first frame of the video.
    """

    frames: np.ndarray
    timestamps: np.ndarray


TOLERANCE = 1e-3  # seconds; containers with millisecond timestamps round 1/30 s to 33 or 34 ms


def resample_indices(timestamps: np.ndarray, fps: float, start: float = 0.0, count: int | None = None) -> np.ndarray:
    """Return int64 indices of the frames shown at start, start + 1/fps, ...: the latest frame not after each time.

    A time up to 1 ms before a frame counts as the time of that frame.

    Args:
        timestamps: float64 [N], seconds, ascending.
        fps: frames per second to resample to.
        start: seconds of the first frame.
        count: number of indices; None, up to the last timestamp plus one mean frame interval.
    """
    if count is None:
        gap = (timestamps[-1] - timestamps[0]) / max(len(timestamps) - 1, 1)
        count = max(1, int(np.ceil((timestamps[-1] + gap - start) * fps - TOLERANCE * fps)))
    return indices_at(timestamps, start + np.arange(count) / fps)


def indices_at(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return int64 indices of the frames shown at `times` (seconds, any shape); before the first frame, index 0."""
    return np.maximum(np.searchsorted(timestamps, times + TOLERANCE, side="right") - 1, 0)


def places_of(indices: np.ndarray) -> dict[int, list[int]]:
    """Return {frame number: its positions in `indices`}; `indices` is int64 [T]."""
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices.tolist()):
        places.setdefault(index, []).append(place)
    return places


def resample_chunks(chunks: Iterator[Chunk], fps: float, last_display: float, size: int) -> Iterator[Chunk]:
    """Resample a stream of chunks as `resample_indices` does, with a delay of one frame.

    Args:
        chunks: the chunks to resample.
        fps: frames per second to resample to.
        last_display: display time of the last frame in seconds.
        size: frames per yielded chunk; the last one may be smaller.

    Yields:
        Chunks with timestamps j/fps.
    """
    pictures: list[np.ndarray] = []
    emitted = 0
    held: np.ndarray | None = None

    def due(picture: np.ndarray, until: float) -> Iterator[Chunk]:
        nonlocal emitted, pictures
        while emitted / fps + TOLERANCE < until:
            pictures.append(picture)
            emitted += 1
            if len(pictures) == size:
                yield Chunk(np.stack(pictures), np.arange(emitted - size, emitted) / fps)
                pictures = []

    time = 0.0
    for frames, times in chunks:
        for frame, time in zip(frames, times, strict=True):
            if held is not None:
                yield from due(held, time)
            held = frame
    if held is not None:
        yield from due(held, max(time + last_display, 2 * TOLERANCE))
    if pictures:
        yield Chunk(np.stack(pictures), np.arange(emitted - len(pictures), emitted) / fps)


Matrix = tuple[int, int, int, int]

# Display matrices of EXIF's orientations 2 to 8, see `display_matrix`.
_ORIENTATIONS: dict[int, Matrix] = {
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def exif_matrix(path: Path) -> Matrix | None:
    """Read the display matrix of an image file's EXIF orientation; None if it is upright or not stated."""
    try:
        with open_binary(path) as file, Image.open(file) as image:
            return _ORIENTATIONS.get(image.getexif().get(0x0112, 0))
    except (OSError, SyntaxError, ValueError):  # FFmpeg can read it, Pillow can't
        return None


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """Return (a, b, c, d) of a frame's display matrix; None if it is upright.

    A pixel at (x, y) is shown at (ax + cy, bx + dy).
    """
    try:
        side_data: Any = frame.side_data
    except ValueError:  # PyAV fails on unknown kinds of side data; the angle is still available, mirroring is lost
        turn = round(frame.rotation / 90) * math.pi / 2
        cos, sin = round(math.cos(turn)), round(math.sin(turn))
        return (cos, -sin, sin, cos) if turn else None
    if (data := side_data.get("DISPLAYMATRIX")) is None:
        return None
    m = np.frombuffer(bytes(data), dtype=np.int32)
    return int(m[0]), int(m[1]), int(m[3]), int(m[4])


def swaps_sides(matrix: Matrix | None) -> bool:
    """Return whether the matrix turns rows into columns."""
    return matrix is not None and abs(matrix[1]) + abs(matrix[2]) > abs(matrix[0]) + abs(matrix[3])


def orient(image_HWC: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Apply a display matrix of quarter turns and mirroring, as ffmpeg's autorotate does."""
    if matrix is None:
        return image_HWC
    a, b, c, d = matrix
    if swaps_sides(matrix):
        image_HWC, a, d = image_HWC.transpose(1, 0, 2), c, b
    return image_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def uncrop(box: Box, size: tuple[int, int], matrix: Matrix | None) -> Box:
    """Return the box of the coded frame that `orient` turns into `box` of a shown frame of `size` (height, width).

    Boxes are (top, left, height, width) in pixels.
    """
    if matrix is None:
        return box
    top, left, height, width = box
    a, b, c, d = matrix
    swap = swaps_sides(matrix)
    if swap:
        a, d = c, b
    top = size[0] - top - height if d < 0 else top
    left = size[1] - left - width if a < 0 else left
    return (left, top, width, height) if swap else (top, left, height, width)


HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics by number, as in H.273


@lru_cache
def warn_of_hdr(transfer: int) -> None:
    """Warn that HDR frames are read without tone mapping, once in a process; `transfer` is a key of `HDR`."""
    text = "is read without tone mapping, which makes its colors pale: convert such videos first"
    warnings.warn(f"HDR ({HDR[transfer]}) {text}, as with ffmpeg's zscale and tonemap filters", stacklevel=2)


class Traits(NamedTuple):
    """Unusual properties of a video.

    Attributes:
        sar: sample aspect ratio, the width of a pixel over its height, before rotation.
        transfer: transfer characteristics by number, as in H.273.
        interlaced: whether its frames consist of two fields.
        matrix: display matrix of the metadata, see `display_matrix`; None, upright.
    """

    sar: Fraction
    transfer: int
    interlaced: bool
    matrix: Matrix | None

    def rows(self) -> dict[str, str]:
        """Return {name: description} of the properties that are unusual."""
        rows = {}
        if self.sar != 1:
            rows["sample aspect ratio"] = f"{self.sar.numerator}:{self.sar.denominator}"
        if self.transfer in HDR:
            rows["transfer"] = f"{HDR[self.transfer]} (HDR, read without tone mapping)"
        if self.interlaced:
            rows["scan"] = "interlaced"
        if self.matrix is not None:
            a, b, c, d = self.matrix
            degrees = f"{round(math.degrees(math.atan2(b, a))) % 360} degrees clockwise"
            rows["rotation"] = degrees if a * d > b * c else f"{degrees}, mirrored"
        return rows


def square_size(width: int, height: int, sar: Fraction) -> tuple[int, int]:
    """Return the (width, height) at which a frame has square pixels, with neither side smaller than before.

    Args:
        width, height: size in pixels.
        sar: width of a pixel over its height.
    """
    return (round(width * sar), height) if sar > 1 else (width, round(height / sar))


def deinterlace(frames: Iterator[VideoFrame]) -> Generator[VideoFrame, None, None]:
    """Interpolate the second field of interlaced frames with FFmpeg's bwdif; progressive frames are unchanged.

    The number of frames and their times stay the same.
    """
    graph: Graph | None = None
    kind: str | None = None
    waiting: deque[VideoFrame] = deque()  # frames in the filter graph, which delays by one frame

    def pull() -> Iterator[VideoFrame]:
        while graph is not None:
            try:
                frame = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            source = waiting.popleft()
            frame.pts, frame.time_base = source.pts, source.time_base
            yield frame

    for frame in frames:
        tags = f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        if kind != (kind := f"{size}:{tags}:time_base=1/1000000"):
            if graph is not None:
                graph.vpush(None)
            yield from pull()
            graph = Graph()
            graph.link_nodes(
                graph.add("buffer", kind), graph.add("bwdif", "send_frame:auto:interlaced"), graph.add("buffersink")
            )
            graph.configure()
        assert graph is not None  # created for this kind of frames
        waiting.append(frame)
        graph.vpush(frame)
        yield from pull()
    if graph is not None:
        graph.vpush(None)
    yield from pull()


COLUMNS = 6  # frames per clip in `frame_rows`


def frame_rows(video_BCTHW: Tensor, columns: int = COLUMNS) -> Tensor:
    """Arrange clips in one image, [3, H', W'] in [-1, 1]: one row per clip, with evenly spread frames."""
    last = video_BCTHW.shape[2] - 1
    frames = sorted({round(place) for place in torch.linspace(0, last, columns).tolist()})
    rows = video_BCTHW[:, :, frames].transpose(1, 2).flatten(0, 1)
    return make_grid(rows.clamp(-1, 1), nrow=len(frames), pad_value=1)


def tiled(video_BCTHW: Tensor) -> Tensor:
    """Arrange clips in one video, [3, T, H', W'] in [-1, 1], as a grid that is as square as possible."""
    across = math.ceil(math.sqrt(len(video_BCTHW)))
    frames = [make_grid(frame.clamp(-1, 1), nrow=across, pad_value=1) for frame in video_BCTHW.unbind(2)]
    return torch.stack(frames, 1)
