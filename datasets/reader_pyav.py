"""Sequential decoding by PyAV: the reference, and the fallback for every file nothing else can be trusted with."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av import VideoFrame

from .container import IMAGE_SUFFIXES, MAX_PIXELS, describe, open_container, stream_fps
from .cut_off import is_cut_off
from .error import VideoError
from .picture import display_matrix, exif_matrix, swaps_sides, to_rgb
from .reader import Chunk, OnError


class PyAVReader:
    """Decodes from the start to what is asked for; going backwards starts again. See `VideoReader`.

    Counting frames means decoding them all once, since only a decoder knows what will be presented; `iter_frames`
    needs no count. A frame that differs in size from the first is scaled to it (as ffmpeg does).
    size: (height, width) as shown. coded_size: (width, height) before metadata turn the picture. turned: whether they
    turn or mirror it. error: the `VideoError` that ended the video early under on_error="keep", once decoding has come
    that far.
    """

    backend = "pyav"

    def __init__(self, path: str | Path, on_error: OnError = "raise"):
        self.path, self._on_error = Path(path), on_error
        self.error: VideoError | None = None
        self._timestamps: np.ndarray | None = None
        self._container, stream = open_container(path)
        self._decoder = self._decode(self._container, stream)
        first = next(self._decoder, None)
        if first is None:
            reason = self.error.reason if self.error else "the stream is empty"
            if not stream.codec_context.width:
                reason += f"; damaged, or above the limit of {MAX_PIXELS} pixels a frame"
            self.close()
            raise VideoError(path, f"no frame could be decoded ({reason})", 0)
        self.fps = stream_fps(stream) if first.time is not None else float(stream.guessed_rate or 25)
        self._ahead, self._next = chain([first], self._decoder), 0  # what comes next, and its index
        self.start_time = self._time(first, 0)
        self.coded_size, matrix = (first.width, first.height), display_matrix(first)
        self._exif = exif_matrix(self.path) if self.path.suffix.lower() in IMAGE_SUFFIXES else None
        matrix = self._exif or matrix
        self.turned = matrix is not None
        self.size = (first.width, first.height) if swaps_sides(matrix) else (first.height, first.width)

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        return float(self.timestamps[-1]) + 1 / self.fps

    @property
    def timestamps(self) -> np.ndarray:
        if self._timestamps is None:
            with PyAVReader(self.path, self._on_error) as other:  # leaves this reader's position alone
                self._timestamps = np.array([t for t, _ in other._forward()])
                self.error = other.error
        return self._timestamps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or not wanted.size or wanted.min() < 0:
            raise ValueError(f"indices must be a non-empty list of frame numbers from 0 on, got {indices!r}")
        if wanted.min() < self._next:
            self._restart()
        missing, pictures = set(wanted.tolist()), {}
        while missing and (entry := next(self._forward(), None)) is not None:
            index = self._next - 1
            if index in missing:
                missing.remove(index)
                pictures[index] = to_rgb(entry[1], *self.coded_size, self._exif)
        if missing:
            raise ValueError(f"{self.path} has {self._next} frames, asked for index {max(missing)}")
        return np.stack([pictures[i] for i in wanted.tolist()])

    def iter_frames(self, chunk: int = 16) -> Iterator[Chunk]:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        times, pictures = [], []
        for time, frame in self.iter_decoded():
            times.append(time)
            pictures.append(to_rgb(frame, *self.coded_size, self._exif))
            if len(times) == chunk:
                yield Chunk(np.stack(pictures), np.array(times))
                times, pictures = [], []
        if times:
            yield Chunk(np.stack(pictures), np.array(times))

    def iter_decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        """(timestamp, frame as decoded: not converted, scaled or turned) of all frames in presentation order."""
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
        """(timestamp, frame) from the current position on."""
        for frame in self._ahead:
            self._next += 1
            yield self._time(frame, self._next - 1) - self.start_time, frame

    def _decode(self, container, stream) -> Iterator[VideoFrame]:
        """Presented frames from the start. What FFmpeg can't decode ends it, and so does what it decodes to something
        else than was encoded and says so, but for frames before the first good one: raised, or kept in `error`.

        Frames that are shown before a damaged one but predicted from it (B-frames) count as good: nobody says so.
        """
        good, begun, last, cause = 0, False, None, None
        frames, why = container.decode(stream), None
        while why is None:
            try:
                frame = next(frames, None)
            except (av.error.FFmpegError, MemoryError) as e:
                cause, why = e, describe(e)
                # Decoded before the break, waiting for their turn.
                waiting = stream.codec_context.decode(None)
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
        if why is None and last is not None and is_cut_off(self.path, container, stream, last + 1 / stream_fps(stream)):
            why = "the file is cut off"
        if why is not None:
            words = f"the stream breaks after {good} good frames ({why})" if good else why
            self.error = VideoError(self.path, words, good)
            if good and self._on_error == "raise":
                raise self.error from cause

    def _restart(self) -> None:
        self.close()
        self._container, stream = open_container(self.path)
        self._decoder = self._decode(self._container, stream)
        self._ahead, self._next = self._decoder, 0

    def _time(self, frame: VideoFrame, index: int) -> float:
        return index / self.fps if frame.time is None else frame.time  # raw streams carry no timestamps
