"""Labeled clips: the test protocol, sources, loading, and train/validation splits.

Splits divide only the training clips, so that model selection never sees the test set.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from vidtok.datasets import (
    EvalTransform,
    LabeledDataset,
    MotionTasks,
    MovingDigits,
    TrainTransform,
    dense_clips,
    open_dataset,
    random_clip,
    random_segments,
    read_annotations,
    uniform_segments,
    validate_disjoint,
)
from vidtok.datasets.labeled import Sampler
from vidtok.datasets.samplers import ids_and_segments
from vidtok.datasets.synthetic.motion import source_of
from vidtok.eval.recognition.inputs import ClipSet, to_bytes
from vidtok.names import escape_name

Encode = Callable[[Tensor], Tensor]

_NAME = re.compile(r"(\d+)x(\d+|u)x(\d+)x(\d+)")
EXAMPLE = "17x4x5x3 (frames x stride x segments x crops), or 17xux2x3 for frames spread evenly over the video"
LOADED = 8  # number of clips that are decoded and rounded to 8 bits together
DIGITS = "digits"  # data set that the package renders


@dataclass(frozen=True)
class Protocol:
    """Test protocol: frames, stride, segments and crops, written as in the literature: `16x4x5x3`.

    Attributes:
        frames: number of frames of a clip.
        stride: distance of two frames of a clip in video frames. None ("u" in the name): frames are spread evenly over
            the whole video, each in the middle of one of `frames` equal parts.
        segments: number of clips of a video, evenly spaced; a single one is taken from the middle.
        crops: 1, the center, or 3 along the long side. Probabilities are averaged over the segments x crops views.
        size: side of the square crops in pixels. resize: short side before the crop in pixels; None, `size`.
        fps: frame rate in which `stride` is counted; None, the video's rate.
        concat_segments: whether the head sees the features of all segments at once, as in V-JEPA's probe.
            Probabilities are then averaged only over the crops, and training draws the same number of clips, one from
            each part of the video.

    Raises:
        ValueError: an illegal number.
    """

    frames: int = 17
    stride: int | None = None
    segments: int = 1
    crops: int = 1
    size: int = 128
    fps: float | None = None
    resize: int | None = None
    concat_segments: bool = False

    def __post_init__(self):
        if min(self.frames, self.segments, self.size) < 1 or self.stride == 0 or self.crops not in (1, 3):
            raise ValueError(f"protocol {self}: all numbers are at least 1, and crops are 1 or 3")
        if self.fps is not None and (self.stride is None or not self.fps > 0):
            raise ValueError(f"protocol {self}: fps={self.fps} is above 0, and goes with a stride only")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"protocol {self}: a crop of {self.size} does not fit into a short side of {self.resize}")

    @classmethod
    def parse(
        cls,
        name: str,
        size: int = 128,
        fps: float | None = None,
        resize: int | None = None,
        concat_segments: bool = False,
    ) -> "Protocol":
        """Parse FRAMESxSTRIDExSEGMENTSxCROPS. Raises ValueError for any other form."""
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(f"protocol {name!r}: want such as {EXAMPLE}")
        frames, stride, segments, crops = match.groups()
        stride = None if stride == "u" else int(stride)
        return cls(int(frames), stride, int(segments), int(crops), size, fps, resize, concat_segments)

    def __str__(self) -> str:
        return f"{self.frames}x{self.stride or 'u'}x{self.segments}x{self.crops}"

    @property
    def views(self) -> int:
        return self.segments * self.crops

    @property
    def at_once(self) -> int:
        """Number of clips that the head sees at once."""
        return self.segments if self.concat_segments else 1

    def sampler(self) -> Sampler:
        """Return the deterministic sampler of the test."""
        if self.stride is None:
            return partial(uniform_segments, frames=self.frames, clips=self.segments)
        return partial(dense_clips, frames=self.frames, stride=self.stride, clips=self.segments, at_fps=self.fps)

    def train_sampler(self) -> Sampler:
        """Return the sampler of random clips for training, as many as the head sees at once."""
        if self.stride is None:
            return partial(random_segments, frames=self.frames, clips=self.at_once)
        return partial(
            random_clip, frames=self.frames, stride=self.stride, at_fps=self.fps, clips=self.at_once, spread=True
        )

    def transform(self) -> EvalTransform:
        return EvalTransform(self.size, self.crops, self.resize)

    def train_transform(self, **settings) -> TrainTransform:
        """Return the transform of training. settings: arguments of `TrainTransform` other than the size."""
        return TrainTransform(self.size, **settings)

    def record(self) -> dict:
        """Return the record for a result file: the name and all settings."""
        averaged = "crops, segments seen at once" if self.concat_segments else "segments x crops"
        return {"name": str(self), **asdict(self), "views": f"probabilities averaged over {averaged}"}

    def for_head(self) -> dict:
        """Return the record for `vidtok.heads.HeadConfig.protocol`."""
        rest = {"fps": self.fps, "resize": self.resize, "concat_segments": self.concat_segments or None}
        return {
            "frames": self.frames, "stride": self.stride, "size": self.size,
            "clips": self.segments, "crops": self.crops,
            **{key: value for key, value in rest.items() if value is not None},
        }  # fmt: skip

    @classmethod
    def of_head(cls, record: dict) -> "Protocol":
        """Read the record of `for_head`."""
        stride = record.get("stride", 1 if "fps" in record else None)
        segments, crops, concat = record.get("clips", 1), record.get("crops", 1), record.get("concat_segments", False)
        fps, resize = record.get("fps"), record.get("resize")
        return cls(record["frames"], stride, segments, crops, record["size"], fps, resize, concat)


@dataclass(frozen=True)
class ClipSource:
    """Source of labeled videos, as the user describes it.

    Attributes:
        source: "digits", a folder, or an annotation file, see `vidtok.datasets.open_dataset`.
        root: folder of the videos; None, the folder of the annotation file.
        path_column, label_column, split_column: names of csv columns; None, the usual names.
        group_column: csv column of groups that cross-validation keeps whole (a lab, a speaker); None, no groups.
            The groups of the digits are the digits.
        classes: class names in order, or Something-Something-v2's file of them; None, those in the annotations.
        checked: csv file of `vidtok check`; videos that are not ok in it are left out, with a warning.
        reader: "auto", "pyav", "decord" or "torchcodec", see `vidtok.datasets.open_video`.
        frame_folders: frames per second of folders of numbered images, which are then one video each; None, images are
            videos.
        task: name of a motion task whose clips are made from the videos of the source, see
            `vidtok.datasets.MotionTasks`; their labels are ignored, and the groups are the source files. None, the
            source's own videos and labels.
        clips: number of clips of the task; None, see `MotionTasks`.
    """

    source: str
    root: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    classes: Sequence[str] | str | None = None
    checked: str | None = None
    reader: str = "auto"
    frame_folders: float | None = None
    task: str | None = None
    clips: int | None = None

    def open(
        self,
        split: str | None,
        protocol: Protocol,
        training: bool = False,
        seed: int = 0,
        scale: tuple[float, float] = (0.3, 1.0),
        flip: bool = True,
        augment: str | None = None,
        on_error: str = "resample",
    ) -> LabeledDataset:
        """Open the videos of a split.

        Args:
            split: name of the split; None, all.
            protocol: the test protocol.
            training: draw a random clip and crop of each video instead of the test clips.
            seed, scale, flip, augment: seed and augmentation of these draws, see `TrainTransform`; flip applies only if
                the labels allow it.
            on_error: handling of unreadable videos in training, see `open_dataset`. A test returns the error.

        Raises:
            ValueError: an unknown split, label or column, or a data set without labels.
        """
        fields = ("path_column", "label_column", "split_column", "frame_folders")
        columns = {name: getattr(self, name) for name in fields}
        dataset: LabeledDataset
        if self.task is not None:
            return self._open_task(self.task, split, protocol, seed, "return" if not training else on_error, columns)
        if self.source == DIGITS:
            if protocol.views > 1 or protocol.stride != 1:
                raise ValueError(f"the digits are made as long as needed: protocol FRAMESx1x1x1, not {protocol}")
            dataset = MovingDigits(split or "train", protocol.frames, protocol.size, seed, classes=self.classes)
        else:
            reading: dict[str, Any]
            if training:
                reading = {"sampler": protocol.train_sampler(), "on_error": on_error}
            else:
                reading = {"sampler": protocol.sampler(), "transform": protocol.transform(), "on_error": "return"}
            reading |= {"seed": seed, "checked": self.checked, "reader": self.reader}
            dataset = open_dataset(self.source, self.root, split, self.classes, **columns, **reading)
            if training:
                flip = flip and dataset.flip_keeps_label
                dataset.transform = protocol.train_transform(scale=tuple(scale), flip=flip, augment=augment)
        if not dataset.classes or min(dataset.labels) < 0:
            raise ValueError(f"{self.source}: videos without labels in split {split!r}")
        return dataset

    def _open_task(
        self, task: str, split: str | None, protocol: Protocol, seed: int, on_error: Any, columns: dict
    ) -> LabeledDataset:
        if protocol.views > 1 or protocol.stride is None:
            raise ValueError(f"motion tasks have one view of each clip: protocol FRAMESxSTRIDEx1x1, not {protocol}")
        for name in ("group_column", "checked"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{name}={value} has no effect on motion tasks")
        shape = {"frames": protocol.frames, "stride": protocol.stride, "size": protocol.size, "fps": protocol.fps}
        reading: dict[str, Any] = {"reader": self.reader, "on_error": on_error, "root": self.root, **shape, **columns}
        return MotionTasks(self.source, task, split, self.clips, seed=seed, classes=self.classes, **reading)

    def groups(self, ids: Sequence[str]) -> list[str] | None:
        """Return the group of each of these videos, or None if there are no groups."""
        if self.task is not None:
            return [source_of(id) for id in ids]
        if self.source == DIGITS:
            return digits_of(ids)
        if self.group_column is None:
            return None
        table = read_annotations(self.source, self.path_column, self.group_column, self.split_column)
        group = dict(zip(ids_and_segments(table)[0], table["label"].astype(str), strict=True))
        if missing := [name for name in ids if name not in group]:
            raise ValueError(f"{self.source}: no {self.group_column} for {missing[0]}")
        return [group[name] for name in ids]

    def validate_disjoint(self, split: str | None, test: "ClipSource", test_split: str | None) -> None:
        """Raise ValueError if a training and a test split share a video."""
        digits = [source.source == DIGITS for source in (self, test)]
        if all(digits) and (split or "train") == (test_split or "train"):
            raise ValueError(f"training and test are the same digits: split {split!r}")
        if not any(digits):
            protocol = Protocol(3, stride=1)  # clips of the shortest motion task: of all files
            validate_disjoint(self.open(split, protocol), test.open(test_split, protocol))


def digits_of(ids: Sequence[str]) -> list[str]:
    """Return the digit in each of these videos; several videos show the same one."""
    return [name.split("/")[0] for name in ids]


def load_clips(
    dataset: LabeledDataset, limit: int | None = None, workers: int = 0, log=print, encode: Encode | None = None
) -> ClipSet:
    """Decode the first `limit` videos of a dataset, or all. Videos that can't be read are listed in `failures`.

    encode: maps the views of a video to what is kept, uint8 [V,3,T,H,W] -> [V,...]; None keeps the pixels. Raises
    ValueError with the first reason if no video can be read.
    """
    dataset.keep(slice(limit))
    path_of = dict(zip(dataset.ids, dataset.paths or [""] * len(dataset), strict=True))
    clips: list[Tensor] = []
    labels, ids, failures = [], [], []
    for batch in dataset.loader(batch_size=max(LOADED, workers), workers=workers):
        for error in batch.failed:
            failures.append({"name": escape_name(str(error.path)), "reason": error.reason})
            log(str(error))
        videos = to_bytes(batch.video)
        clips += videos if encode is None else [encode(video).cpu() for video in videos]
        labels += batch.label.tolist()
        ids += batch.id
    if not clips:
        raise ValueError(f"no clip could be read: {failures[0]['name']}: {failures[0]['reason']}")
    paths = [path_of[name] for name in ids]
    return ClipSet(torch.stack(clips), np.array(labels), ids, dataset.classes, failures, paths)


def load_views(
    source: ClipSource, split: str | None, protocol: Protocol, views: int, limit: int | None = None, workers: int = 0,
    log=print, encode: Encode | None = None, **augmentation,
) -> ClipSet:  # fmt: skip
    """Load `views` random clips and crops (of digits: renderings) of the first `limit` videos of a training split.

    encode: see `load_clips`; tokens of many views may fit into memory if their pixels don't. augmentation: scale, flip
    and augment of `ClipSource.open`. If one view of a video fails, the whole video fails.
    """
    if views < 1:
        raise ValueError(f"want at least one view of each clip, not data.train_views={views}")
    whole: ClipSet | None = None
    video = torch.empty(0)
    failures: dict[str, dict] = {}
    for view in range(views):
        dataset = source.open(split, protocol, training=True, seed=view, on_error="return", **augmentation)
        found = load_clips(dataset, limit, workers, log, encode)
        log(f"{len(found)} training clips, view {view + 1} of {views}")
        failures |= {failure["name"]: failure for failure in found.failures}
        if whole is None:
            whole, video = found, found.video.new_empty(len(found), views, *found.video.shape[2:])
        here = {name: place for place, name in enumerate(found.ids)}
        kept = [place for place, name in enumerate(whole.ids) if name in here]
        if len(kept) < len(whole):
            whole, video = whole.subset(kept), video[kept]
        for place, name in enumerate(whole.ids):
            video[place, view] = found.video[here[name], 0]
    assert whole is not None  # there is at least one view
    return replace(whole, video=video, failures=list(failures.values()))


Indices = np.ndarray


def split_off(labels: np.ndarray, groups: Sequence[str] | None, share: float, seed: int = 0) -> tuple[Indices, Indices]:
    """Split off about `share` of the clips: return (indices of the rest, indices of the held-out clips).

    Groups, if any, stay whole. Otherwise the split is stratified by class if each class has enough clips. Raises
    ValueError for a single group, or if one side would be empty.
    """
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    n = len(labels)
    if not 0 < round(share * n) < n:
        raise ValueError(f"a share of {share:g} of {n} training clips leaves one side empty")
    if groups is not None:
        if len(set(groups)) < 2:
            raise ValueError("all training clips are of one group, which can't be split")
        splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    elif np.bincount(labels)[np.unique(labels)].min() >= 2 and round(share * n) >= len(set(labels.tolist())):
        splitter = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=share, random_state=seed)
    return next(iter(splitter.split(np.zeros(n), labels, groups)))


def folds(
    labels: np.ndarray, groups: Sequence[str] | None, count: int = 5
) -> tuple[str, list[tuple[Indices, Indices]]]:
    """Make folds for cross-validation: return (their description, [(train, test)]).

    Groups, if any, stay whole. Otherwise the folds are stratified if each class has at least `count` clips.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    if groups is not None:
        count = min(count, len(set(groups)))
        if count < 2:
            raise ValueError("all training clips are of one group, which can't be split")
        name, splitter = f"{count} folds by group", GroupKFold(count)
    elif np.bincount(labels)[np.unique(labels)].min() >= count:
        name, splitter = f"{count} stratified folds", StratifiedKFold(count, shuffle=True, random_state=0)
    else:
        count = min(count, len(labels))
        name, splitter = f"{count} folds", KFold(count, shuffle=True, random_state=0)
    return name, list(splitter.split(np.zeros(len(labels)), labels, groups))


def repeated_folds(
    labels: np.ndarray, groups: Sequence[str] | None, count: int, repeats: int
) -> tuple[str, list[list[tuple[Indices, Indices]]]]:
    """Divide the clips into `count` stratified folds, `repeats` times: return (description, [[(train, test)]]).

    Groups, if any, stay whole. With at most `count` groups, each is a fold, and there is only one division. Raises
    ValueError for a single group.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    by = ""
    if groups is not None:
        number = len(set(groups))
        if number < 2:
            raise ValueError("all clips are of one group, which can't be split into folds: give folds=0")
        count, repeats = (number, 1) if number <= count else (count, repeats)
        by = " by group"
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than folds
        divisions = [
            list(kind(count, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups))
            for seed in range(repeats)
        ]
    whole = [[(train, test) for train, test in division if len(test)] for division in divisions]
    return f"{count} stratified folds{by}{f', {repeats} times' if repeats > 1 else ''}", whole


AUGMENTATION = ("scale", "flip", "augment")  # settings of the augmentation of training clips


def build_clip_sources(data: dict) -> tuple[ClipSource, ClipSource]:
    """Build the sources of the training and test clips from the settings of the group `data`."""
    fields = ("path_column", "label_column", "split_column", "group_column", "classes", "checked", "reader")
    columns: dict[str, Any] = {key: data[key] for key in (*fields, "frame_folders", "task")}
    source = ClipSource(str(data["source"]), data["root"], **columns, clips=data["train_clips"])
    test = replace(source, clips=data["val_clips"])
    if data["val_source"] is None:
        return source, test
    return source, replace(test, source=data["val_source"], root=data["val_root"] or data["root"])


def load_training_clips(
    source: ClipSource,
    protocol: Protocol,
    data: dict,
    encode: Encode | None = None,
    videos: LabeledDataset | None = None,
) -> ClipSet:
    """Load the training clips: those of the test protocol, or `train_views` random ones of each video.

    Args:
        data: settings of the group `data`.
        encode: see `load_clips`.
        videos: the training split, if it has been opened already.
    """
    log = PartialState().print  # in the main process only
    split, limit, workers, views = (data[key] for key in ("train_split", "train_clips", "workers", "train_views"))
    if views is None:
        return load_clips(source.open(split, protocol) if videos is None else videos, limit, workers, log, encode)
    augmentation = {key: data[key] for key in AUGMENTATION}
    return load_views(source, split, protocol, views, limit, workers, log, encode, **augmentation)


def build_protocol(data: dict) -> Protocol:
    """Build the protocol from the settings of the group `data`."""
    return Protocol.parse(data["protocol"], data["size"], data["fps"], data["resize"], data["concat_segments"])
