"""Motion tasks: labels that need more than one frame, made from unlabeled videos.

A single frame carries no information about the label of a moving camera or object: place, size and angle of a crop, and
the place of an object, are periodic and uniformly distributed at every moment, for every motion. Frames are continued
by their mirror images, and sizes jump between the smallest and the largest. The clips of arrow, speed and order have
the same middle in the video for all classes: their first frames differ only near the ends of videos.

Legend: T frames, H W frame size, S side of the clip.
"""

import math
import os
import warnings
import zlib
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidtok.datasets.annotations.table import canonical_split
from vidtok.datasets.container import Timeline, cached_timeline
from vidtok.datasets.frames import View
from vidtok.datasets.labeled import LabeledVideos, OnError, Sample
from vidtok.datasets.samplers import Segment, frames_of_segment
from vidtok.datasets.seek import read_selection
from vidtok.datasets.sources import is_folder, videos_by_split
from vidtok.errors import VideoError, nearest
from vidtok.inputs import file_version, is_archive
from vidtok.names import escape_name

_AROUND = [
    "right",
    "down-right",
    "down",
    "down-left",
    "left",
    "up-left",
    "up",
    "up-right",
]  # clockwise, 45 degrees each
TASKS = {
    "camera": [*(f"pan-{name}" for name in _AROUND), "zoom-in", "zoom-out", "rotate-clockwise", "rotate-anticlockwise"],
    "arrow": ["forward", "backward"],
    "speed": ["1x", "2x", "4x"],
    "order": ["".join(order) for order in permutations("123")],
    "object-direction": _AROUND,
    "object-speed": ["slow", "medium", "fast"],
    "object-bounce": ["straight", "bounce"],
}
MOST_FILES = 4000  # per task; opening more would take time without benefit
_VAL_SHARE = 5  # every fifth file, by its hash, in a source without splits

# Camera: side of the crop as a share of the frame's short side; distances from the first frame to the last.
_SMALLEST, _LARGEST = 0.3, 0.9
_PAN = (0.3, 0.6)  # sides of the crop
_ZOOM = (1.2, 1.45)  # ratio of sides
_ROTATION = (math.radians(20), math.radians(60))

# Objects, in sides of the clip.
_RADIUS = (0.12, 0.2)
_DISTANCES = {"slow": (0.14, 0.2), "medium": (0.32, 0.44), "fast": (0.75, 1.0)}
_DISTANCE = (0.3, 0.8)  # if speed is not the label
_CROP = (0.7, 1.0)  # side of the clip's crop as a share of the short side


class SourceFile(NamedTuple):
    """Video that clips are made from. segment: (start, end) in seconds; None, all of it. name: its name in ids."""

    path: str
    segment: Segment | None
    name: str


class MotionTasks(LabeledVideos):
    """Clips with motion labels, made from unlabeled videos.

        videos = MotionTasks("videos", "camera", split="train", clips=4000)

    The tasks and their classes TASK/CLASS:

    - camera (12): how a crop of a still frame or of a moving clip moves: it pans in one of eight directions, zooms in
      or out, or rotates
    - arrow (2): whether a clip is played forward or backward
    - speed (3): whether every frame, every second or every fourth frame is shown
    - order (6): the order in which the thirds of a clip are shown, with random gaps between them
    - object-direction (8), object-speed (3), object-bounce (2): how an object pasted over a clip moves

    Item i is a function of (seed, task, i) and its file. Its file and class depend only on (task, i) and the list of
    files. Every file is used once before any is used twice, and so is every class.

    A sample has video float32 [1,3,frames,size,size] in [-1, 1], label, id "FILE#TASK-i", and timestamps j/25 s.

    Args:
        source: a folder (searched recursively), an archive, or an annotation file, whose labels are ignored; see
            `vidtok.datasets.sources.videos_by_split`.
        task: name of one task, or "all", all of them in turn.
        split: "train", "val", ...: a split of the source. In a source without splits, "val" is every fifth file by a
            hash of its name, and "train" the others; use folders train/ and val/ if a recording consists of several
            files. None, all files.
        clips: total number of clips; None, 4,000 of each task in a split "train" and 2,000 in others.
        frames: frames per clip, at least 2, and 3 for order.
        stride: frames of the video from one frame of the clip to the next, at the slowest speed.
        size: height and width in pixels.
        fps: frame rate in which the stride is counted; None, the video's own. Videos with fewer frames per second than
            fps / stride are left out.
        seed: seed of the renderings.
        classes: class names in the order of the class numbers, such as those of a trained head; None, the task's.
        root: folder of the videos of an annotation file; None, that of the file.
        reader: "auto", "pyav", "decord" or "torchcodec", see `vidtok.datasets.open_video`.
        on_error: "raise", "return" or "resample", see `LabeledVideos`.
        columns: path_column, label_column, split_column and frame_folders, see `open_dataset`.

    Attributes:
        files: {task: files that its clips are made from}. Files that can't be opened or are too short for the task are
            left out, with a warning.

    Raises:
        ValueError: illegal arguments, a source without videos that are long enough, or classes that lack one of the
            task's classes.
    """

    flip_keeps_label = False
    playback_fps = 25.0

    def __init__(
        self,
        source: str | Path,
        task: str = "all",
        split: str | None = None,
        clips: int | None = None,
        frames: int = 17,
        stride: int = 1,
        size: int = 64,
        fps: float | None = None,
        seed: int = 0,
        classes: Sequence[str] | None = None,
        root: str | Path | None = None,
        reader: str = "auto",
        on_error: OnError = "raise",
        **columns: Any,
    ):
        if task != "all" and task not in TASKS:
            raise ValueError(f"unknown motion task {task!r}: {nearest(task, ['all', *TASKS])}")
        tasks = list(TASKS) if task == "all" else [task]
        if clips is None:
            clips = len(tasks) * (4000 if split and canonical_split(split) == "train" else 2000)
        least = 3 if "order" in tasks else 2
        if min(clips, stride) < 1 or frames < least or size < 16:
            given = f"{clips=}, {stride=}, {frames=} and {size=}"
            raise ValueError(f"want clips and stride of at least 1, {least} frames and 16 pixels, not {given}")
        self.task, self.frames, self.stride, self.size, self.fps = task, frames, stride, size, fps
        names = [f"{task}/{name}" for task in tasks for name in TASKS[task]]
        classes = names if classes is None else list(classes)
        if missing := [name for name in names if name not in classes]:
            raise ValueError(f"the classes lack {missing[0]!r}: task {task!r} needs the classes {', '.join(names)}")
        found = _files_of_split(source, split, root, columns)
        self.files = {task: self._usable(task, found) for task in tasks}
        numbers = [(tasks[i % len(tasks)], i // len(tasks)) for i in range(clips)]
        files = [self._file_of(*item) for item in numbers]
        ids = [f"{file.name}#{task}-{n}" for file, (task, n) in zip(files, numbers, strict=True)]
        labels = [classes.index(_class_of(*item)) for item in numbers]
        paths, segments = [file.path for file in files], [file.segment for file in files]
        super().__init__(
            paths, ids, labels, classes, split, seed=seed, on_error=on_error, reader=reader, segments=segments
        )

    def _usable(self, task: str, found: Sequence[SourceFile]) -> list[SourceFile]:
        """Return the first `MOST_FILES` files that can be opened and are long enough for the task."""
        wanted = 1 if task == "camera" else int(_span(task, self.frames) * self.stride) + 1
        used, left_out = list[SourceFile](), list[SourceFile]()
        for file in found:
            if len(used) == MOST_FILES:
                break
            try:
                timeline = cached_timeline(file_version(file.path), file.path)
                times, step = _times_of(timeline, file), self._step(timeline.fps)
                is_long = len(times) >= wanted * step / self.stride and step >= 1
            except VideoError:
                is_long = False
            (used if is_long else left_out).append(file)
        if left_out:
            warnings.warn(
                f"{len(left_out)} of {len(used) + len(left_out)} videos are left out of task {task!r}, such as "
                f"{left_out[0].name}: they can't be read or have fewer than {wanted} frames",
                stacklevel=3,
            )
        if not used:
            raise ValueError(
                f"no video with {wanted} frames for task {task!r}: give longer ones, or a smaller protocol"
            )
        return used

    def _step(self, fps: float) -> float:
        """Return the number of video frames from one frame of a clip to the next."""
        return self.stride if self.fps is None else self.stride * fps / self.fps

    def _file_of(self, task: str, number: int) -> SourceFile:
        files = self.files[task]
        turn, place = divmod(number, len(files))
        return files[np.random.default_rng([_hash(task), 1, turn]).permutation(len(files))[place]]

    def _read(self, index: int, rng: np.random.Generator) -> Sample:
        # Not from `index`: `keep` may have removed samples. Not from `rng`: the clip is the same in every epoch.
        task, number = self.ids[index].rpartition("#")[2].rsplit("-", 1)
        file = SourceFile(self.paths[index], self.segments[index], source_of(self.ids[index]))
        kind = self.classes[self.labels[index]].partition("/")[2]
        # Also from the file: otherwise items of the same number in train and val would share class and motion.
        item_rng = np.random.default_rng([self.seed, int(number), *(_hash(name) for name in (task, file.name))])
        video_3THW = self._render(task, kind, file, item_rng)
        timestamps = torch.arange(self.frames, dtype=torch.float64) / self.playback_fps
        return Sample(video_3THW[None], self.labels[index], self.ids[index], timestamps[None])

    def _render(self, task: str, kind: str, file: SourceFile, rng: np.random.Generator) -> Tensor:
        """Render a clip, uint8 [3,T,S,S]."""
        T, S = self.frames, self.size
        if task == "camera":
            frames = 1 if rng.random() < 0.5 else T
            read_side = round(1.5 * S)  # short side in pixels: a crop of two thirds of it has the size of the clip
            pictures = self._read_frames(file, np.arange(frames), frames - 1, rng, read_side)
            return _to_uint8(_move_camera(pictures, kind, T, S, rng))
        span = _span(task, T)
        frames_T3SS = self._read_frames(file, _offsets(task, kind, T, rng), span, rng)
        if not task.startswith("object"):
            return frames_T3SS.transpose(0, 1)
        return _to_uint8(_paste_object(frames_T3SS, task, kind, rng))

    def _read_frames(
        self, file: SourceFile, offsets: np.ndarray, span: int, rng: np.random.Generator, short_side: int | None = None
    ) -> Tensor:
        """Read frames at `offsets` (0 to `span`, in steps) from a random start on, uint8 [T,3,h,w].

        short_side: short side of whole frames in pixels, which are not enlarged; None reads a random square crop of
        the clip's size. In a video shorter than the span, the last frame is repeated.
        """
        start, side, top, left = rng.random(4)  # drawn here, since `choose` may be called twice

        def choose(timestamps: np.ndarray, fps: float) -> np.ndarray:
            inside = frames_of_segment(file.path, timestamps, fps, file.segment)
            count, step = inside.stop - inside.start, self._step(fps)
            room = max(count - int(span * step + 1e-6), 1)
            indices = int(start * room) + np.floor(offsets * step + 1e-6).astype(np.int64)
            return inside.start + np.minimum(indices, count - 1)

        def view(height: int, width: int) -> View:
            short = min(height, width)
            if short_side is not None:
                scale = min(1, short_side / short)
                return View((0, 0, height, width), (round(height * scale), round(width * scale)))
            crop = round(short * (_CROP[0] + side * (_CROP[1] - _CROP[0])))
            place = int(top * (height - crop + 1)), int(left * (width - crop + 1))
            return View((*place, crop, crop), (self.size, self.size))

        frames_THWC, _ = read_selection(file.path, choose, None, view, self.reader)
        return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)


def task_of(name: str) -> str:
    """Return the task of a class "TASK/CLASS"."""
    return name.partition("/")[0]


def source_of(id: str) -> str:
    """Return the name of the file that a clip of `MotionTasks` is made from."""
    return id.rpartition("#")[0]


def _files_of_split(
    source: str | Path, split: str | None, root: str | Path | None, columns: dict[str, Any]
) -> list[SourceFile]:
    """Return the files of a split in an order that depends only on their names, by a hash."""
    splits = videos_by_split(source, root, **columns)
    in_folder = is_folder(source) and not is_archive(source)
    base = str(source) if in_folder else str(root or Path(source).parent)
    has_splits = list(splits) != [str(source)]
    if split is None or not has_splits:
        chosen = [video for videos in splits.values() for video in videos]
    else:
        chosen = [
            video
            for name, videos in splits.items()
            if canonical_split(name) == canonical_split(split)
            for video in videos
        ]
        if not chosen:
            raise ValueError(f"{source} has no split {split!r}, only {', '.join(map(str, splits))}")
    if split is not None and not has_splits:
        if (name := canonical_split(split)) not in ("train", "val"):
            raise ValueError(f"{source} has no splits; by a hash it has 'train' and 'val', not {split!r}")
        # The hash ignores the folder, so that copies are in the same split.
        is_val = [_hash(os.path.basename(path)) % _VAL_SHARE == 0 for path, _ in chosen]
        chosen = [video for video, val in zip(chosen, is_val, strict=True) if val == (name == "val")]
    files = [
        SourceFile(path, segment, escape_name(Path(os.path.relpath(path, base)).as_posix()))
        for path, segment in dict.fromkeys(chosen)
    ]
    if not files:
        raise ValueError(f"{source} has no video{f' in split {split!r}' if split else ''}")
    return sorted(files, key=lambda file: (_hash(file.name), file))


def _hash(name: str) -> int:
    return zlib.crc32(os.fsencode(name))


def _times_of(timeline: Timeline, file: SourceFile) -> np.ndarray:
    if not len(timeline.pts):
        return timeline.pts
    return timeline.timestamps[frames_of_segment(file.path, timeline.timestamps, timeline.fps, file.segment)]


def _class_of(task: str, number: int) -> str:
    """Return the class of an item; each block of as many items as classes has each class once."""
    block, place = divmod(number, len(TASKS[task]))
    order = np.random.default_rng([_hash(task), 2, block]).permutation(len(TASKS[task]))
    return f"{task}/{TASKS[task][order[place]]}"


# -------------------------------------------------------------- time


def _span(task: str, frames: int) -> int:
    """Return the number of steps from the first to the last frame that a clip may show, equal for all classes."""
    if task == "speed":
        return 4 * (frames - 1)
    return 5 * -(-frames // 3) - 1 if task == "order" else frames - 1


def _offsets(task: str, kind: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return the offsets of a clip's frames from the start of its window, in steps, int64 [T]."""
    offsets = np.arange(frames)
    if task == "arrow":
        return offsets if kind == "forward" else offsets[::-1]
    if task == "speed":  # around the middle of the window
        speed = int(kind[0])
        return offsets * speed + (4 - speed) * (frames - 1) // 2
    if task == "order":
        longest = -(-frames // 3)
        gaps = rng.integers(1, longest, size=2, endpoint=True)  # so that the edges of the thirds don't match
        starts = np.cumsum([rng.integers(2 * longest - gaps.sum(), endpoint=True), *(longest + gaps)])
        shown = np.array_split(offsets, 3)  # of fixed lengths, whichever third is shown there
        pairs = zip(kind, shown, strict=True)
        return np.concatenate([starts[int(third) - 1] + np.arange(len(part)) for third, part in pairs])
    return offsets


# -------------------------------------------------------------- pictures


def _to_uint8(video_T3SS: Tensor) -> Tensor:
    """Round float [T,3,S,S] in 0..255 to uint8 [3,T,S,S]."""
    return video_T3SS.round_().clamp_(0, 255).to(torch.uint8).transpose(0, 1)


def _direction(name: str) -> np.ndarray:
    angle = _AROUND.index(name) * math.pi / 4
    return np.array([math.cos(angle), math.sin(angle)])  # x to the right, y down


def _pixels(size: int) -> tuple[Tensor, Tensor]:
    """Return the (x, y) of the pixels of a clip, each [S,S] in (-1, 1)."""
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    y_SS, x_SS = torch.meshgrid(axis, axis, indexing="ij")
    return x_SS, y_SS


def _move_camera(pictures_T3HW: Tensor, kind: str, frames: int, size: int, rng: np.random.Generator) -> Tensor:
    """Render the view of a moving crop of one frame, or of one frame per time step: float [T,3,S,S] in 0..255.

    At every moment, place, size and angle of the crop have the same distribution for all kinds of motion.
    """
    height, width = pictures_T3HW.shape[-2:]
    move, _, way = kind.partition("-")
    u_T = np.linspace(0, 1, frames)
    x, y, scale, turn = rng.random(4)
    pan, zoom, rotation = rng.uniform(*_PAN), rng.uniform(*_ZOOM), rng.uniform(*_ROTATION)
    scale_T, angle_T = np.full(frames, scale), np.full(frames, turn * 2 * math.pi)
    scale_range = math.log(_LARGEST / _SMALLEST)
    if move == "zoom":
        scale_T = (scale + (-1 if way == "in" else 1) * math.log(zoom) / scale_range * u_T) % 1
    if move == "rotate":
        angle_T = angle_T + (1 if way == "clockwise" else -1) * rotation * u_T
    side_T = min(height, width) * _SMALLEST * np.exp(scale_T * scale_range)
    cos_T, sin_T = np.cos(angle_T), np.sin(angle_T)
    center_T2 = np.tile([2 * width * x, 2 * height * y], (frames, 1))  # mirrored frames have a period of two frames
    if move == "pan":
        dx, dy = pan * _direction(way)
        along_T2 = np.stack([dx * cos_T - dy * sin_T, dx * sin_T + dy * cos_T], 1)
        center_T2 = center_T2 + along_T2 * (side_T * u_T)[:, None]
    # To the coordinates of grid_sample, -1 to 1 over the frame.
    half_T, sides = side_T / 2, np.array([width, height])
    matrix_T23 = np.empty((frames, 2, 3))
    matrix_T23[:, :, 2] = center_T2 * 2 / sides - 1
    matrix_T23[:, 0, :2] = np.stack([cos_T, -sin_T], 1) * half_T[:, None] * 2 / width
    matrix_T23[:, 1, :2] = np.stack([sin_T, cos_T], 1) * half_T[:, None] * 2 / height
    grid = F.affine_grid(torch.from_numpy(matrix_T23).float(), [frames, 3, size, size], align_corners=False)
    pictures = pictures_T3HW.float().expand(frames, -1, -1, -1)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def _paste_object(frames_T3SS: Tensor, task: str, kind: str, rng: np.random.Generator) -> Tensor:
    """Paste a moving object over a clip: float [T,3,S,S] in 0..255.

    The object has a lumpy outline, a dark rim, and the texture of another place in the clip in other colors. It leaves
    at one edge and enters at the opposite one, so that its place is uniformly distributed at every moment.
    """
    T, _, size, _ = frames_T3SS.shape
    frames = frames_T3SS.float()
    center_T2 = rng.random(2) * 2 + _path(T, task, kind, rng)  # period 2, as pixels are in (-1, 1)
    radius, angle = 2 * rng.uniform(*_RADIUS), rng.uniform(0, 2 * math.pi)
    lumps = rng.uniform(0, 2 * math.pi, 2)
    texture_from, channels, inverts = rng.integers(T), rng.permutation(3), rng.random(3) < 0.5
    place, zoom = rng.uniform(-0.5, 0.5, 2), rng.uniform(1, 2)
    x_SS, y_SS = _pixels(size)
    # Offsets in radii from the center of the nearest copy; copies repeat with period 2.
    u_TSS, v_TSS = (
        (torch.remainder(axis - torch.from_numpy(center).float()[:, None, None] + 1, 2) - 1) / radius
        for axis, center in ((x_SS, center_T2[:, 0]), (y_SS, center_T2[:, 1]))
    )
    theta_TSS = torch.atan2(v_TSS, u_TSS)
    bumps_TSS = 0.14 * torch.cos(3 * theta_TSS + lumps[0]) + 0.08 * torch.cos(5 * theta_TSS + lumps[1])
    distance_TSS = torch.hypot(u_TSS, v_TSS) * (1 + bumps_TSS)
    pixel = 2 / size / radius
    inside_TSS = ((1 - distance_TSS) / pixel + 0.5).clamp(0, 1)  # a soft edge of one pixel
    rim_TSS = ((distance_TSS - 0.85) / pixel + 0.5).clamp(0, 1)
    picture = frames[texture_from][channels.tolist()]
    picture = torch.where(torch.from_numpy(inverts)[:, None, None], 255 - picture, picture)
    cos, sin = math.cos(angle) * radius * zoom, math.sin(angle) * radius * zoom
    grid = torch.stack([place[0] + u_TSS * cos - v_TSS * sin, place[1] + u_TSS * sin + v_TSS * cos], -1)
    texture = F.grid_sample(picture.expand(T, -1, -1, -1), grid, padding_mode="reflection", align_corners=False)
    texture = texture * (1 - 0.7 * rim_TSS[:, None])
    return torch.lerp(frames, texture, inside_TSS[:, None])


def _path(frames: int, task: str, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return the places of an object relative to the first, float64 [T,2], in half sides of the clip."""
    u_T = np.linspace(0, 1, frames)
    angle = rng.uniform(0, 2 * math.pi)
    distance = 2 * rng.uniform(*(_DISTANCES[kind] if task == "object-speed" else _DISTANCE))
    way = _direction(kind) if task == "object-direction" else np.array([math.cos(angle), math.sin(angle)])
    bounce, turn = rng.uniform(0.3, 0.7), math.pi + rng.uniform(-math.pi / 4, math.pi / 4)
    path_T2 = distance * u_T[:, None] * way
    if kind != "bounce":
        return path_T2
    after = np.array([math.cos(angle + turn), math.sin(angle + turn)])
    return distance * (np.minimum(u_T, bounce)[:, None] * way + np.maximum(u_T - bounce, 0)[:, None] * after)
