"""Decode with PyAV: conversion of decoded frames, and the reference implementation of `VideoReader`.

`FrameConverter` crops, resizes and converts a decoded frame in one pass of swscale, without a full-size RGB or float
frame. `PyAVReader` is the fallback for files on which no seeking backend can be verified. It also detects truncated
Matroska, WebM and AVI files, which FFmpeg reads to their end without an error.
"""

from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
from av import VideoFrame
from av.filter import Graph

from vidtok.datasets.container import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Decoding,
    describe,
    is_rate_reliable,
    longest_gap,
    measure_rate,
    open_container,
    read_timeline,
    stated_rate,
)
from vidtok.datasets.damage import Damage, decode_past_damage, is_truncated
from vidtok.datasets.frames import (
    HDR,
    Box,
    Chunk,
    Matrix,
    OnError,
    Traits,
    View,
    deinterlace,
    display_matrix,
    exif_matrix,
    orient,
    places_of,
    resample_chunks,
    square_size,
    swaps_sides,
    uncrop,
    warn_of_hdr,
)
from vidtok.errors import VideoError
from vidtok.inputs import check_unchanged, file_version

# Version 1 resized RGB as float tensors: bicubic, antialiased. Version 2 was darker by up to two levels of 255.
RESIZE_VERSION = 3

# Downscaling by this factor or more uses swscale's area filter, other scaling its bicubic one, which takes 1.3 to 2.5
# times as long. `vidtok bench loader` measures rate and PSNR beside decord's.
AREA_FACTOR = 1.5

# Color matrices by number, as in H.273, that swscale can't convert; newer ones can't be converted either.
_UNSUPPORTED = {8: "YCgCo", 10: "BT.2020 with constant luminance", 14: "ICtCp"}
_RESERVED, _UNTAGGED = 3, 2


@lru_cache
def _is_coarse(format_name: str) -> bool:
    """Return whether a format has below 8 bits a color (bitmaps, RGB565): swscale crops and converts some wrongly."""
    return min(component.bits for component in av.VideoFormat(format_name).components) < 8


class FrameConverter:
    """Convert decoded frames to uint8 RGB as shown, cropped and resized in one pass of swscale.

    Matrix and range follow the tags of each frame. Untagged frames are BT.601, limited range.

    Args:
        path: the file, for errors.
        coded_size: (width, height) in pixels before rotation; frames of another size are scaled to it.
        matrix: display matrix (see `display_matrix`); None, upright.
    """

    def __init__(self, path: str | Path, coded_size: tuple[int, int], matrix: Matrix | None):
        self.path, self.coded_size, self.matrix = path, coded_size, matrix
        width, height = coded_size
        self.size = (height, width) if matrix is None or not swaps_sides(matrix) else (width, height)
        self._graph: tuple[tuple, Graph] | None = None

    def __call__(self, frame: VideoFrame, view: View | None) -> np.ndarray:
        """Return uint8 [h,w,3], possibly a view of memory that the next call reuses.

        Raises:
            VideoError: FFmpeg can't convert the colors.
        """
        if (tag := int(frame.colorspace)) == _RESERVED:
            frame.colorspace = _UNTAGGED
        elif tag in _UNSUPPORTED or tag > 10:
            name = _UNSUPPORTED.get(tag, f"number {tag}")
            raise VideoError(
                self.path, f"its color matrix is {name}, which FFmpeg can't convert: convert the video first"
            )
        if (transfer := int(frame.color_trc)) in HDR:
            warn_of_hdr(transfer)
        if _is_coarse(frame.format.name):
            frame = frame.reformat(format="gbrp", threads=1)
        if (frame.width, frame.height) != self.coded_size:
            frame = frame.reformat(*self.coded_size)
        if view is None or view.size == view.box[2:]:
            picture_HWC = self._upright(frame.reformat(format="rgb24", threads=1))
            if view is None:
                return picture_HWC
            top, left, height, width = view.box
            return picture_HWC[top : top + height, left : left + width]
        graph = self._scaler(frame, view)
        graph.vpush(frame)
        return self._upright(graph.vpull())

    def _upright(self, frame: VideoFrame) -> np.ndarray:
        """Return the pixels of an rgb24 frame as shown, without a copy: uint8 [H,W,3]."""
        plane = frame.planes[0]
        buffer = cast(bytes, plane)  # as far as NumPy is concerned
        coded_HWC = np.ndarray((frame.height, frame.width, 3), np.uint8, buffer, strides=(plane.line_size, 3, 1))
        return coded_HWC if self.matrix is None else orient(coded_HWC, self.matrix)

    def _scaler(self, frame: VideoFrame, view: View) -> Graph:
        """Return the filter graph for frames like `frame`; it is rebuilt when their format or tags change."""
        format_name, tags = frame.format.name, (int(frame.colorspace), int(frame.color_range))
        key = (format_name, tags, view)
        if self._graph is None or self._graph[0] != key:
            top, left, height, width = _whole_samples(uncrop(view.box, self.size, self.matrix), frame)
            rows, columns = reversed(view.size) if swaps_sides(self.matrix) else view.size
            factor = min(height / rows, width / columns)
            flags = "area" if factor >= AREA_FACTOR else "bicubic"
            graph = Graph()
            graph.threads = 1
            nodes = [
                graph.add(
                    "buffer",
                    f"video_size={frame.width}x{frame.height}:pix_fmt={format_name}:time_base=1/1000:"
                    f"colorspace={tags[0]}:range={tags[1]}",
                )
            ]
            if (height, width) != (frame.height, frame.width):
                nodes.append(graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"))
            nodes.append(graph.add("scale", f"{columns}:{rows}:flags={flags}+accurate_rnd"))
            # Planar RGB comes from vector code that rounds to nearest. Directly to rgb24, swscale rounds down.
            nodes += [graph.add("format", kind) for kind in ("gbrp", "rgb24")] + [graph.add("buffersink")]
            graph.link_nodes(*nodes).configure()
            self._graph = key, graph
        return self._graph[1]


def _whole_samples(box: Box, frame: VideoFrame) -> Box:
    """Grow a box to whole chroma samples, at least those of 4:2:0, so that most formats are cropped alike."""
    top, left, height, width = box
    rows, columns = max(2, 4 // frame.format.chroma_height(4)), max(2, 4 // frame.format.chroma_width(4))
    bottom, right = -(-(top + height) // rows) * rows, -(-(left + width) // columns) * columns
    top, left = top // rows * rows, left // columns * columns
    return top, left, min(bottom, frame.height) - top, min(right, frame.width) - left


def convert_pictures(frames: np.ndarray, view: View | None) -> np.ndarray:
    """Crop and resize RGB frames as `FrameConverter` does: uint8 [...,H,W,3] -> uint8 [...,h,w,3]."""
    if view is None:
        return np.ascontiguousarray(frames)
    pictures = frames.reshape(-1, *frames.shape[-3:])
    convert = FrameConverter("", pictures.shape[2:0:-1], None)
    out = np.empty((len(pictures), *view.size, 3), np.uint8)
    for i, picture_HWC in enumerate(pictures):
        out[i] = convert(VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), "rgb24"), view)
    return out.reshape(*frames.shape[:-3], *out.shape[1:])


RESTART = 0.1  # seconds backward; less is jitter


class Clock:
    """Clock that makes the presentation times of a video continuous where its own clock restarts or jumps.

    The first frame after a restart or jump follows the one before it by the preceding interval. A step back of less
    than `RESTART` seconds repeats the last time, so that times never decrease.

    Args:
        limit: see `longest_gap`.
        interval: seconds from one frame to the next before any interval has been measured.

    Attributes:
        breaks: (number of the first frame after it, seconds by which the clock was off) of each restart or jump so far.
    """

    def __init__(self, limit: float, interval: float):
        self.breaks: list[tuple[int, float]] = []
        self._limit, self._interval = limit, interval
        self._shift = 0.0
        self._last: float | None = None

    def time(self, time: float | None, number: int) -> float:
        """Return the continuous time in seconds of the next frame.

        Args:
            time: the frame's time on the container's clock in seconds; None, unknown.
            number: number of the frame.
        """
        if self._last is None:
            self._last = 0.0 if time is None else time
            return self._last
        due = self._last + self._interval
        continuous = due if time is None else time + self._shift
        if continuous < self._last - RESTART or continuous > due + self._limit:
            self.breaks.append((number, continuous - due))
            self._shift -= continuous - due
            continuous = due
        if continuous > self._last:
            self._interval = continuous - self._last
        self._last = max(continuous, self._last)
        return self._last

    def __str__(self) -> str:
        """Name the breaks: "the clock restarts at frame 10"; "" without one."""
        kinds = [f"{'restarts' if off < 0 else f'jumps {off:.0f} s'} at frame {number}" for number, off in self.breaks]
        more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
        return f"the clock {', '.join(kinds[:3])}{more}; its times were made continuous" if kinds else ""


class PyAVReader:
    """Sequential reader with PyAV; a request for an earlier frame restarts from the beginning. See `VideoReader`.

    `num_frames` and `timestamps` decode the whole video once, since only the decoder knows which frames are presented;
    `iter_frames` needs no count. A frame whose size differs from the first is scaled to the first size, as by ffmpeg.
    Frames of 720 lines or more are decoded by up to `torch.get_num_threads()` threads.

    Args:
        path: the file.
        on_error: "raise"; "keep": a video that breaks in the middle ends at its last good frame; "skip": decoding
            continues after the break, without the damaged frames (`decode_past_damage`).
        options: "deinterlace", see `deinterlace`; "sar", frames are scaled to square pixels.

    Attributes:
        damage: the `Damage` that on_error="skip" has found so far; None with another on_error.
        convert: the `FrameConverter` of its frames.
        coded_size: (width, height) in pixels before the rotation of the metadata.
        turned: whether the metadata rotate or mirror the frames.
        traits: `Traits` of the video as it is in the file.
        sar: width of a pixel over its height, as shown.
        clock: the `Clock` that makes times continuous; it has the restarts that decoding has reached.

    Raises:
        VideoError: no frame can be decoded.
    """

    backend = "pyav"

    def __init__(self, path: str | Path, on_error: OnError = "raise", options: Sequence[str] = ()):
        self.path, self._on_error, self._options = Path(path), on_error, options
        self.error: VideoError | None = None
        self.damage: Damage | None = None
        self._timestamps: np.ndarray | None = None
        self.version = file_version(path)
        self._container, stream = open_container(path)
        decoder = self._decode(self._container, stream)
        self._decoder = deinterlace(decoder) if "deinterlace" in options else decoder
        first = next(self._decoder, None)
        if first is None:
            reason = self.error.reason if self.error else "the stream is empty"
            if not stream.codec_context.width:
                reason += f"; damaged, or above the limit of {MAX_PIXELS} pixels a frame"
            self.close()
            raise VideoError(path, f"no frame could be decoded ({reason})", 0)
        self._has_times = first.time is not None  # raw streams have none
        self._stated = stated_rate(stream) if self._has_times else float(stream.guessed_rate or 25)
        is_image = self.path.suffix.lower() in IMAGE_SUFFIXES
        # H.264 in AVI has no presentation times, and FFmpeg gives frames those of other packets.
        context = stream.codec_context
        is_unordered = self._container.format.name == "avi" and context.name == "h264" and context.has_b_frames
        self._packet_times = read_timeline(path).timestamps if is_unordered and self._has_times else None
        self._measures = self._has_times and not is_image and not is_rate_reliable(self._container, stream)
        gap = longest_gap(self._container)
        matrix = (exif_matrix(self.path) if is_image else None) or display_matrix(first)
        self.clock = Clock(gap, 1 / self._stated)
        self._ahead: Iterator[VideoFrame] = chain([first], self._decoder)  # the next frames
        self._next = 0  # index of the first of them
        self.start_time = 0.0 if first.time is None else first.time
        pixel, size = Fraction(cast(Fraction, stream.sample_aspect_ratio) or 1), (first.width, first.height)
        is_interlaced = bool(first.interlaced_frame or context.field_order > 1)  # 1 is progressive
        self.traits = Traits(pixel, int(first.color_trc), is_interlaced, matrix)
        if "sar" in options and pixel != 1:
            pixel, size = Fraction(1), square_size(*size, pixel)
        self.sar = 1 / pixel if matrix is not None and swaps_sides(matrix) else pixel
        self.convert = FrameConverter(path, size, matrix)
        self.coded_size, self.size = self.convert.coded_size, self.convert.size
        self.turned = self.convert.matrix is not None

    @cached_property
    def fps(self) -> float:
        if not self._measures:
            return self._stated
        container, stream = open_container(self.path)
        with container:
            return measure_rate(container, stream)

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        return float(self.timestamps[-1]) + 1 / self.fps

    @property
    def timestamps(self) -> np.ndarray:
        if self._timestamps is None:
            check_unchanged(self.path, self.version)
            with PyAVReader(self.path, self._on_error, self._options) as other:  # keeps the position of this reader
                self._timestamps = np.array([t for t, _ in other._forward()])
                self.error, self.clock, self.damage = other.error, other.clock, other.damage
        return self._timestamps

    def frames(self, indices: Sequence[int], view: View | None = None) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or not wanted.size or wanted.min() < 0:
            raise ValueError(f"indices must be a non-empty list of frame numbers from 0 on, got {indices!r}")
        if wanted.min() < self._next:
            self._restart()
        places, out = places_of(wanted), None
        while places and (entry := next(self._forward(), None)) is not None:
            if rows := places.pop(self._next - 1, None):
                picture_HWC = self.convert(entry[1], view)
                out = np.empty((len(wanted), *picture_HWC.shape), np.uint8) if out is None else out
                out[rows] = picture_HWC
        check_unchanged(self.path, self.version)
        if places:
            raise ValueError(f"{self.path} has frames 0 to {self._next - 1}, not {max(places)}")
        assert out is not None  # at least one frame is wanted
        return out

    def iter_frames(self, chunk: int = 16, view: View | None = None, fps: float | None = None) -> Iterator[Chunk]:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        chunks = self._chunks(chunk, view)
        return chunks if fps is None else resample_chunks(chunks, fps, 1 / self.fps, chunk)

    def _chunks(self, chunk: int, view: View | None) -> Iterator[Chunk]:
        times: list[float] = []
        for time, frame in self.iter_decoded():
            picture_HWC = self.convert(frame, view)
            if not times:
                frames_THWC = np.empty((chunk, *picture_HWC.shape), np.uint8)
            frames_THWC[len(times)] = picture_HWC
            times.append(time)
            if len(times) == chunk:
                yield Chunk(frames_THWC, np.array(times))
                times = []
        if times:
            yield Chunk(frames_THWC[: len(times)], np.array(times))

    def iter_decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (timestamp, decoded frame) in presentation order; frames are not converted, scaled or rotated."""
        if self._next:
            self._restart()
        yield from self._forward()

    def close(self) -> None:
        self._decoder.close()
        self._container.close()

    def __enter__(self) -> "PyAVReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _forward(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (timestamp, frame) from the current position on."""
        for frame in self._ahead:
            self._next += 1
            yield self._time(frame, self._next - 1) - self.start_time, frame
        check_unchanged(self.path, self.version)

    def _decode(self, container, stream) -> Generator[VideoFrame, None, None]:
        """Yield the presented frames from the start, up to the first that FFmpeg can't decode or reports as corrupt.

        The error is raised or stored in `error`. Corrupt frames before the first good one are passed through. Frames
        that are shown before a damaged one but predicted from it (B-frames) count as good, since FFmpeg does not
        report them. After an error with several threads the video is decoded again in one, see `Decoding`.
        """
        if self._on_error == "skip":
            damage = Damage()
            self.damage = damage if self._timestamps is None else self.damage  # all of it is known with all times
            yield from decode_past_damage(self.path, container, stream, damage)
            self.error = VideoError(self.path, str(damage), damage.good) if damage.reason else None
            return
        good, begun, last, cause = 0, False, None, None
        decoding = Decoding(container, stream)
        frames, why = iter(decoding), None
        while why is None:
            frame, fault = None, None
            try:
                frame = next(frames, None)
            except (av.error.FFmpegError, MemoryError) as e:
                fault = e
            if decoding.is_threaded and (decoding.is_short if frame is None else frame.is_corrupt and begun):
                container.close()
                self._container, stream = open_container(self.path, threads=1)
                container, decoding = self._container, Decoding(self._container, stream, skip=good)
                frames = iter(decoding)
                continue
            if fault:
                cause, why = fault, describe(fault)
                try:  # frames decoded before the break and buffered for presentation
                    waiting = stream.codec_context.decode(None)
                except av.error.FFmpegError:  # the end was reached before
                    waiting = []
            else:
                waiting = [] if frame is None else [frame]
                if frame is None:
                    break
            for frame in waiting:
                if frame.is_corrupt and begun:
                    why = why or "the next one is damaged"
                    break
                begun = begun or not frame.is_corrupt
                good, last = good + 1, frame.time
                yield frame
        if why is None and last is not None and is_truncated(self.path, container, stream, last):
            why = "the file is truncated"
        if why is not None:
            words = f"the stream breaks after {good} good frames ({why})" if good else why
            self.error = VideoError(self.path, words, good)
            if good and self._on_error == "raise":
                raise self.error from cause

    def _restart(self) -> None:
        self.close()
        check_unchanged(self.path, self.version)
        self._container, stream = open_container(self.path)
        decoder = self._decode(self._container, stream)
        self._decoder = deinterlace(decoder) if "deinterlace" in self._options else decoder
        self.clock = Clock(longest_gap(self._container), 1 / self._stated)
        self._ahead, self._next = self._decoder, 0

    def _time(self, frame: VideoFrame, index: int) -> float:
        if self._packet_times is not None:
            return self.start_time + float(self._packet_times[min(index, len(self._packet_times) - 1)])
        return self.clock.time(frame.time, index) if self._has_times else index / self.fps
