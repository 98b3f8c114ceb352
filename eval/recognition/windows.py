"""Files of the labels of windows: tables (csv), subtitles (srt, vtt) and overlay videos (mp4, mov, mkv).

All files of a video are written together, in one pass over its windows and in memory that doesn't grow with its length.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from functools import partial
from html import escape
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vidtok.datasets import VideoWriter, open_video
from vidtok.datasets.backends import split_reader
from vidtok.datasets.frames import TOLERANCE
from vidtok.datasets.writing import find_audio
from vidtok.errors import UserError, is_expected, one_line
from vidtok.eval.recognition.recognizer import LabeledWindow, Recognizer
from vidtok.files import plan_jobs, replacing
from vidtok.inputs import find_videos

Add = Callable[[LabeledWindow, float], None]  # of a window, and the time until which its label is shown


def label_windows(
    recognizer: Recognizer,
    inputs: Sequence[str | Path],
    outputs: str | Path | Sequence[str | Path],
    *,
    formats: Sequence[str] = ("csv", "srt"),
    seconds: float | None = None,
    hop: float | None = None,
    top: int = 5,
    force: bool = False,
) -> Iterator[tuple[Path, list[Path], int | str]]:
    """Write the labels of all windows of videos to files.

    | format | content |
    |---|---|
    | csv | start, end, label, probability: one row for each of the `top` labels of a window |
    | srt, vtt | subtitles: the most probable label of each window until the next one begins |
    | mp4, mov, mkv | the video with the subtitle below the picture, in square pixels and with its audio |

    Args:
        recognizer: the classifier.
        inputs: videos, folders of them, glob patterns.
        outputs: one or several: for one video, a file in one of the formats; or a folder for files in `formats`, with
            the directory tree of each input folder.
        formats: formats of files in a folder.
        seconds, hop, top: see `Recognizer.windows`.
        force: overwrite existing files.

    Yields:
        (video, its files, number of windows or reason of failure) of each video, once its files are complete.

    Raises:
        UserError: an unknown format, a path that doesn't exist, a pattern that matches nothing, or illegal outputs.
    """
    if unknown := [name for name in formats if f".{name}" not in _SINKS]:
        raise UserError(f"unknown format {unknown[0]!r}: give {', '.join(suffix[1:] for suffix in _SINKS)}")
    files = find_videos([str(x) for x in inputs])
    targets: dict[Path, list[Path]] = {}
    for output in [outputs] if isinstance(outputs, str | Path) else outputs:
        is_file = Path(output).suffix.lower() in _SINKS and not Path(output).is_dir()
        for suffix in [Path(output).suffix.lower()] if is_file else [f".{name}" for name in formats]:
            for job in plan_jobs(files, str(output), suffix, (*_SINKS,)):
                targets.setdefault(job.source, []).append(job.target)
    return _label(recognizer, targets, force, seconds=seconds, hop=hop, top=top)


def _label(
    recognizer: Recognizer, targets: dict[Path, list[Path]], force: bool, **settings
) -> Iterator[tuple[Path, list[Path], int | str]]:
    for video, paths in targets.items():
        try:
            if not force and (found := next(filter(Path.exists, paths), None)) is not None:
                raise UserError(f"{found} exists: --force overwrites it")
            yield video, paths, _write(recognizer, video, paths, settings)
        except Exception as error:
            if not is_expected(error):
                raise
            yield video, paths, one_line(error)


def _write(recognizer: Recognizer, video: Path, paths: list[Path], settings: dict) -> int:
    """Write the files of one video; return the number of windows."""
    count, windows = 0, recognizer.windows(video, **settings)
    first = next(windows)  # fails before files are opened
    with ExitStack() as stack:
        sinks: list[Add] = []
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            sinks.append(stack.enter_context(_SINKS[path.suffix.lower()](path, video, recognizer)))
        for window, until in _until_next(chain([first], windows)):
            count += 1
            for add in sinks:
                add(window, until)
    return count


def _until_next(windows: Iterator[LabeledWindow]) -> Iterator[tuple[LabeledWindow, float]]:
    """Yield each window with the time until which its label is shown: its end, or the start of the next window."""
    shown = next(windows)
    for following in windows:
        yield shown, min(shown.end, following.start)
        shown = following
    yield shown, shown.end


@contextmanager
def _table(path: Path, video: Path, recognizer: Recognizer) -> Iterator[Add]:
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("start", "end", "label", "probability"))

        def add(window: LabeledWindow, until: float) -> None:
            times = f"{window.start:.3f}", f"{window.end:.3f}"
            writer.writerows([*times, label, f"{probability:.6f}"] for label, probability in window.labels)

        yield add


@contextmanager
def _subtitles(path: Path, video: Path, recognizer: Recognizer, is_vtt: bool) -> Iterator[Add]:
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write("WEBVTT\n\n" if is_vtt else "")
        mark, count = "." if is_vtt else ",", 0

        def add(window: LabeledWindow, until: float) -> None:
            nonlocal count
            count += 1
            text = escape(_caption(window), quote=False) if is_vtt else _caption(window)
            file.write(f"{count}\n{_clock(window.start, mark)} --> {_clock(until, mark)}\n{text}\n\n")

        yield add


def _caption(window: LabeledWindow) -> str:
    label, probability = window.labels[0]
    return f"{' '.join(label.split())} ({probability:.0%})"


def _clock(seconds: float, mark: str) -> str:
    """Format a time in the form of subtitles, 00:01:02,500; `mark` is before the thousandths."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{thousandths:03}"


TICK = Fraction(1, 90_000)  # seconds, for the times of frames in overlay videos
FRAMES_AT_ONCE = 8  # whole frames in memory


@contextmanager
def _overlay(path: Path, video: Path, recognizer: Recognizer) -> Iterator[Add]:
    name, options = split_reader(recognizer.reader)
    square = "+".join(["pyav", *{*options, "sar"}]) if name == "pyav" else name
    with open_video(video, square) as reader:
        names = recognizer.head.config.classes or []
        banner = Banner(*reader.size, [f"{' '.join(name.split())} (100%)" for name in names])
        chunks = reader.iter_frames(FRAMES_AT_ONCE)
        frames_THWC, times = next(chunks)
        tick = -1  # that of the last frame
        with VideoWriter(path, reader.fps, TICK, find_audio(video)) as writer:

            def show(text: str, until: float) -> None:
                """Write the next frames, those before `until`."""
                nonlocal frames_THWC, times, tick
                while count := int(np.searchsorted(times, until - TOLERANCE)):
                    ticks = []
                    for time in times[:count].tolist():
                        ticks.append(tick := max(round(time / TICK), tick + 1))  # times may repeat, ticks may not
                    pictures_THWC = torch.from_numpy(banner.below(frames_THWC[:count], text))
                    writer.write(pictures_THWC.permute(3, 0, 1, 2), ticks)
                    frames_THWC, times = frames_THWC[count:], times[count:]
                    if not len(times):
                        frames_THWC, times = next(chunks, (frames_THWC, times))

            def add(window: LabeledWindow, until: float) -> None:
                show("", window.start)
                show(_caption(window), until)

            yield add
            show("", np.inf)


WIDTH = 320  # pixels of the narrowest overlay; smaller videos are enlarged by a whole factor
FONT, LINES = 14, 24  # height of the smallest font in pixels; lines that fit into the shorter side of larger pictures


FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


def _font(size: int, is_ascii: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which has only the letters of ASCII; for others the first of the system's `FONTS`."""
    for name in () if is_ascii else FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


class Banner:
    """Strip of text below the pictures of a video, high enough for the longest of its texts.

    Args:
        height, width: size of the pictures in pixels.
        texts: all texts that may be shown.

    Attributes:
        size: (height, width) of pictures with the strip, even numbers.
    """

    def __init__(self, height: int, width: int, texts: Sequence[str]):
        self._factor = -(-WIDTH // max(height, width))
        height, width = height * self._factor, width * self._factor
        size = max(FONT, min(height, width) // LINES)
        self._font = _font(size, all(map(str.isascii, texts)))
        self._margin, self._step = size // 2, size * 4 // 3  # `step`: from one line to the next
        self._width = max(width + width % 2, WIDTH)
        strip = max(len(self.lines(text)) for text in texts) * self._step + 2 * self._margin
        self.size = height + strip + (height + strip) % 2, self._width
        self._height, left = height, (self._width - width) // 2
        self._columns = slice(left, left + width)
        self._drawn: tuple[str, np.ndarray] | None = None

    def below(self, frames_THWC: np.ndarray, text: str) -> np.ndarray:
        """Return frames with a text below: uint8 [T,h,w,3] -> uint8 [T,H,W,3]."""
        if self._drawn is None or self._drawn[0] != text:
            self._drawn = text, self._draw(text)
        out_THWC = np.zeros((len(frames_THWC), *self.size, 3), np.uint8)
        out_THWC[:, : self._height, self._columns] = frames_THWC.repeat(self._factor, 1).repeat(self._factor, 2)
        out_THWC[:, self._height :] = self._drawn[1]
        return out_THWC

    def _draw(self, text: str) -> np.ndarray:
        image = Image.new("RGB", (self._width, self.size[0] - self._height))
        pen = ImageDraw.Draw(image)
        for number, line in enumerate(self.lines(text)):
            pen.text((self._margin, self._margin + number * self._step), line, "white", self._font)
        return np.asarray(image)

    def lines(self, text: str) -> list[str]:
        """Break a text into lines that fit, between words or within a word that is too long."""
        lines, room = [""], self._width - 2 * self._margin
        for word in text.split():
            if lines[-1] and self._font.getlength(f"{lines[-1]} {word}") <= room:
                lines[-1] += f" {word}"
                continue
            if lines[-1]:
                lines.append("")
            for letter in word:
                if lines[-1] and self._font.getlength(lines[-1] + letter) > room:
                    lines.append("")
                lines[-1] += letter
        return lines


_SINKS: dict[str, Callable[[Path, Path, Recognizer], AbstractContextManager[Add]]] = {
    ".csv": _table,
    ".srt": partial(_subtitles, is_vtt=False),
    ".vtt": partial(_subtitles, is_vtt=True),
    ".mp4": _overlay,
    ".mov": _overlay,
    ".mkv": _overlay,
}
