"""Write videos atomically, whole or streamed in bounded memory, optionally with the audio of another file."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream as AvAudioStream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream as AvStream
from PIL import Image
from torch import Tensor

from vidtok.datasets.container import describe, open_container, tick_of
from vidtok.datasets.frames import video_to_frames
from vidtok.errors import VideoError
from vidtok.files import temporary_path


class AudioPackets:
    """Encoded audio packets of a file, read in order and copied without reencoding.

    Args:
        source: a video file, of which the first audio stream is read; or a file that `copy_audio` wrote, opened for
            reading.
        start, end: seconds from the first frame of the video; packets that begin outside are left out.
        lead: the `lead` with which `copy_audio` wrote the file.
        whole: keep packets before the first frame, if `start` is 0; and a writer keeps those after the last frame.

    Attributes:
        stream: the audio stream. tracks: number of audio streams in the file.
        whole: as given.

    Raises:
        VideoError: the file can't be read.
        ValueError: it has no audio or audio of an unknown codec, or is no file of `copy_audio`.
    """

    def __init__(
        self,
        source: str | Path | BinaryIO,
        start: float = 0.0,
        end: float | None = None,
        *,
        lead: float = 0.0,
        whole: bool = False,
    ):
        first = lead
        if isinstance(source, str | Path):
            self._container, video = open_container(source)
            first = float((video.start_time or 0) * tick_of(video))
        else:
            try:
                self._container = av.open(source, "r", format=_AUDIO_FORMAT)
            except av.error.FFmpegError as error:
                raise ValueError(f"its audio can't be read ({describe(error)})") from error
        streams = self._container.streams.audio
        if not streams or streams[0].codec_context is None:
            self._container.close()
            what = "audio of a codec that FFmpeg doesn't know: leave the audio out" if streams else "no audio"
            raise ValueError(f"{source}: has {what}" if isinstance(source, str | Path) else f"it has {what}")
        self.stream: AvAudioStream = streams[0]
        self.tracks, self.whole = len(streams), whole
        base = self.stream.time_base
        assert base is not None  # FFmpeg sets it for every stream
        self._base, self._origin = base, round(first / base) + round(start / base)  # ticks
        self._length = math.inf if end is None else end - start
        self._earliest = -math.inf if whole and start == 0 else 0.0
        self._packets = (packet for packet in self._container.demux(self.stream) if packet.pts is not None)
        self._next = next(self._packets, None)
        self._packet_ticks = 0

    @property
    def lead(self) -> float:
        """Seconds by which the next packet begins before `start`; 0 if it begins later or there is none."""
        return 0.0 if self._next is None else max(-self._time_of(self._next), 0.0)

    def until(self, seconds: float) -> Iterator[av.Packet]:
        """Yield the next packets that begin before `seconds`, counted from `start`."""
        while self._next is not None:
            packet, time = self._next, self._time_of(self._next)
            assert packet.pts is not None
            if time >= min(seconds, self._length):
                return
            self._next = next(self._packets, None)
            if self._next is not None and self._next.pts is not None:
                self._packet_ticks = self._next.pts - packet.pts
            if time >= self._earliest:
                packet.duration = packet.duration or self._packet_ticks  # .mp4 drops a packet without a duration
                dts = packet.pts if packet.dts is None else packet.dts
                packet.pts, packet.dts = packet.pts - self._origin, dts - self._origin
                yield packet

    def _time_of(self, packet: av.Packet) -> float:
        """Return the seconds from `start` to the beginning of a packet."""
        assert packet.pts is not None
        return float((packet.pts - self._origin) * self._base)

    def close(self) -> None:
        self._container.close()


def find_audio(source: str | Path) -> AudioPackets | None:
    """Return the audio of a video file; None if it has none.

    Raises:
        VideoError: the file can't be read.
    """
    container, _ = open_container(source)
    with container:
        has_audio = bool(container.streams.audio)
    return AudioPackets(source) if has_audio else None


_AUDIO_FORMAT = "nut"  # supports any codec and any time base


def copy_audio(source: str | Path, output: BinaryIO, end: float | None = None, lead: float = 0.0) -> None:
    """Copy the encoded audio of a video file to a file for `AudioPackets`, packet by packet.

    Args:
        source: the video. output: opened for writing.
        end: seconds from the first frame; packets that begin later are left out. None, copy all.
        lead: seconds before the first frame from which packets are copied; times in `output` count from there.

    Raises:
        VideoError: the file can't be read.
        ValueError: it has no audio.
    """
    audio, count = AudioPackets(source, start=-lead, end=end), 0
    try:
        with av.open(output, "w", format=_AUDIO_FORMAT) as container:
            stream = container.add_stream_from_template(audio.stream)
            for packet in audio.until(math.inf):
                packet.stream = stream
                container.mux(packet)
                count += 1
    except av.error.FFmpegError as error:
        raise VideoError(source, f"its audio breaks after {count} packets ({describe(error)})") from error
    finally:
        audio.close()


class VideoWriter:
    """Writer of a video, chunk by chunk, to .mp4, .mov or .mkv (H.264, crf 12), .gif, or one frame to .png.

    Even sizes are stored as 4:2:0, which every player supports, and sizes with an odd side as 4:4:4, which keeps the
    size. Color is limited-range BT.709 in HD and BT.601 below, as players expect, and is tagged in the file. The file
    is renamed into place when the `with` block ends; after an exception inside, no file is left.

    Args:
        path: the file to write.
        fps: frames per second, above 0; the mean of a variable rate.
        time_base: seconds per tick, for a variable rate; `write` then takes the ticks of frames. A .gif is played at
            the mean rate.
        audio: packets to write beside the frames, up to the end of the video unless they are `whole`; the writer closes
            it. Ignored for .gif and .png.
        sar: width of a pixel over its height, by which players stretch frames. Ignored for .gif and .png.

    Raises:
        ValueError: another suffix, an illegal fps, or times or audio that the format can't hold; the latter also when
            frames are written.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        time_base: Fraction | None = None,
        audio: AudioPackets | None = None,
        sar: Fraction = Fraction(1),
    ):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _SINKS:
            raise ValueError(f"{self.path}: can write {', '.join(_SINKS)}, not {suffix!r}")
        if not fps > 0:
            raise ValueError(f"fps={fps} must be above 0")
        self._part = temporary_path(self.path, suffix)
        # Below 1 fps, the seconds per frame are rounded instead.
        rate = Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / (1 / Fraction(fps)).limit_denominator(1001)
        self._sink = _SINKS[suffix](self._part, rate, time_base, audio, sar)
        self._shape: tuple[int, ...] | None = None

    def write(self, video: Tensor, ticks: Sequence[int] | None = None) -> None:
        """Append a chunk.

        Args:
            video: [3,t,H,W] or [1,3,t,H,W], float in [-1, 1] (clamped) or uint8; the same H and W in all chunks.
            ticks: [t], when each frame is shown, ascending; with a time base.

        Raises:
            ValueError: another shape.
        """
        if video.ndim == 5 and video.shape[0] == 1:
            video = video[0]
        if video.ndim != 4 or video.shape[0] != 3 or 0 in video.shape:
            raise ValueError(f"want a video [3,T,H,W] or [1,3,T,H,W], not {list(video.shape)}")
        shape = tuple(video.shape[2:])
        if self._shape not in (None, shape):
            raise ValueError(f"want (T, H, W) = (any, {self._shape[0]}, {self._shape[1]}) as before, not {shape}")
        self._shape = shape
        with self._naming_errors():
            self._sink.add(video_to_frames(video.detach()), ticks)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        with self._naming_errors():
            try:
                if kind is None:
                    if self._shape is None:
                        raise ValueError(f"{self.path}: no frame was written")
                    self._sink.finish()
                    os.replace(self._part, self.path)
            finally:
                try:
                    self._sink.abandon()  # may fail as well, on a full disk
                finally:
                    self._part.unlink(missing_ok=True)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Turn errors of FFmpeg, but for those of the file system, into one that names the file."""
        try:
            yield
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"{self.path}: its times or size can't be written ({describe(error)})") from error


def write_video(path: str | Path, video: Tensor, fps: float) -> None:
    """Write a video to .mp4, .mov, .mkv, .gif or (T = 1) .png; see `VideoWriter` for the encoding.

    Args:
        path: the file to write.
        video: [1,3,T,H,W] or [3,T,H,W], float in [-1, 1] (clamped) or uint8.
        fps: frames per second, above 0.

    Raises:
        ValueError: another shape or suffix, or an illegal fps.
    """
    with VideoWriter(path, fps) as writer:
        writer.write(video)


# By number of channels, what players assume of PCM whose file doesn't say; .mp4 needs one.
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


class _H264:
    def __init__(
        self, path: Path, fps: Fraction, time_base: Fraction | None, audio: AudioPackets | None, sar: Fraction
    ):
        self._sar = sar
        self._container, self._fps, self._time_base = av.open(f"file:{path}", "w"), fps, time_base
        self._stream: AvStream | None = None
        self._suffix, self._audio = path.suffix, audio
        self._seconds = Fraction(0)  # duration written so far

    def add(self, frames_THWC: np.ndarray, ticks: Sequence[int] | None) -> None:
        if self._stream is None:
            height, width = frames_THWC.shape[1:3]
            self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "12"})
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            # Players that ignore the tags guess the matrix from the size, by these thresholds in mpv.
            hd = width >= 1280 or height > 576
            self._matrix = Colorspace.ITU709 if hd else Colorspace.ITU601
            context = self._stream.codec_context
            if self._time_base is not None:
                context.time_base = self._time_base
            if self._sar != 1:
                context.sample_aspect_ratio = self._sar
            context.colorspace, context.color_range = self._matrix, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            if self._audio is not None:
                self._sound = self._add_sound(self._audio)
        for i, image_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            yuv = frame.reformat(
                format=self._stream.pix_fmt, dst_colorspace=self._matrix, dst_color_range=ColorRange.MPEG
            )
            if ticks is not None and self._time_base is not None:
                yuv.pts, yuv.time_base = int(ticks[i]), self._time_base
            self._container.mux(self._stream.encode(yuv))
        frame_seconds = 1 / self._fps
        if ticks is None or self._time_base is None:
            self._seconds += len(frames_THWC) * frame_seconds
        else:
            self._seconds = int(ticks[-1]) * self._time_base + frame_seconds
        self._add_packets(float(self._seconds))

    def _add_packets(self, seconds: float) -> None:
        """Write the audio packets that begin before `seconds`."""
        if self._audio is not None:
            for packet in self._audio.until(seconds):
                packet.stream = self._sound
                self._container.mux(packet)

    def _add_sound(self, audio: AudioPackets) -> AvAudioStream:
        try:
            stream = self._container.add_stream_from_template(audio.stream)
            context = audio.stream.codec_context
            if context.layout.name == f"{context.channels} channels" and context.channels in _LAYOUTS:
                stream.codec_context.layout = _LAYOUTS[context.channels]
            self._container.start_encoding()  # writes the header; some formats reject the audio only here
        except (ValueError, av.error.FFmpegError) as error:
            codec = audio.stream.codec_context.name
            way = "leave" if self._suffix == ".mkv" else "write a .mkv, or leave"
            raise ValueError(f"a {self._suffix} can't hold {codec} audio: {way} the audio out") from error
        return stream

    def finish(self) -> None:
        assert self._stream is not None  # a video has at least one frame
        self._container.mux(self._stream.encode(None))
        if self._audio is not None and self._audio.whole:
            self._add_packets(math.inf)
        self.abandon()

    def abandon(self) -> None:
        self._container.close()
        if self._audio is not None:
            self._audio.close()


MAX_DELAY = (1 << 16) - 1  # hundredths of a second that a frame of a GIF is shown


def gif_delays(frames: int, fps: Fraction) -> list[int]:
    """Return the delay of each frame in hundredths of a second; 0 drops the frame.

    The delays of 30 fps are 3, 4, 3, 3, 4, 3, ... so that errors do not add up. Above 50 fps frames are dropped,
    because viewers play a delay of 1 as 10.
    """
    step = 1 if fps <= 50 else 2
    edges = [step * round(Fraction(100 * i, step) / fps) for i in range(frames + 1)]
    delays = [end - start for start, end in pairwise(edges)]
    return delays if any(delays) else [step, *delays[1:]]


class _Pillow:
    """Collect frames and write them at the end with Pillow: a GIF, or a PNG of one frame."""

    def __init__(
        self, path: Path, fps: Fraction, time_base: Fraction | None, audio: AudioPackets | None, sar: Fraction
    ):
        self._path, self._fps = path, fps
        if path.suffix.lower() == ".gif" and 100 / fps > MAX_DELAY:
            raise ValueError(f"a .gif shows a frame for at most {MAX_DELAY / 100:.0f} s: write a .mkv")
        if audio is not None:
            audio.close()
        self._images: list[Image.Image] = []

    def add(self, frames_THWC: np.ndarray, ticks: Sequence[int] | None) -> None:
        self._images += [Image.fromarray(image_HWC) for image_HWC in frames_THWC]
        if self._path.suffix.lower() == ".png" and len(self._images) > 1:
            raise ValueError("a .png holds one frame; write .mp4 or .gif, or one frame of the video")

    def finish(self) -> None:
        if self._path.suffix.lower() == ".png":
            self._images[0].save(self._path)
        else:
            delays = gif_delays(len(self._images), self._fps)
            shown = [(image, delay) for image, delay in zip(self._images, delays, strict=True) if delay]
            (first, _), *rest = shown
            durations = [10 * delay for _, delay in shown]
            first.save(self._path, save_all=True, append_images=[i for i, _ in rest], duration=durations, loop=0)

    def abandon(self) -> None:
        self._images = []


_SINKS: dict[str, type[_H264] | type[_Pillow]] = {
    ".mp4": _H264,
    ".mov": _H264,
    ".mkv": _H264,
    ".gif": _Pillow,
    ".png": _Pillow,
}
