"""Training and test data of a head, from videos, clips in memory or extracted features.

Training batches are pure functions of (seed, number), as the training loop requires.

Legend: B batch, V views, N clips.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from torch import Tensor

from vidtok.datasets import LabeledDataset, VideoError
from vidtok.datasets.loading import WHOLE, Shard, prefetch, shard_rows
from vidtok.eval.recognition.clips import (
    AUGMENTATION,
    ClipSource,
    Protocol,
    build_clip_sources,
    build_protocol,
    load_clips,
    load_training_clips,
    split_off,
)
from vidtok.eval.recognition.features import FeatureFiles
from vidtok.eval.recognition.inputs import (
    ClipSet,
    InputEncoder,
    Test,
    center_crop_grid,
    crop_grid,
    encode_all,
    memory_test,
    predict,
    shuffle_frames,
    unpack,
    views_of_dataset,
)
from vidtok.heads import Head
from vidtok.heads.head import build_head
from vidtok.tokenizer import VideoTokenizer


class Source(TypingProtocol):
    """Source of labeled samples. draw(index, epoch) returns (sample, label) as a pure function of its arguments.

    The label belongs to the returned sample, since another sample may replace one that can't be read.
    """

    @property
    def labels(self) -> Sequence[int] | np.ndarray: ...

    def __len__(self) -> int: ...

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]: ...

    def summary(self) -> str: ...


class VideoSource:
    """Source of videos that are decoded when they are drawn."""

    def __init__(self, dataset: LabeledDataset):
        self.dataset, self.labels = dataset, dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]:
        sample = self.dataset.draw(index, epoch)
        if isinstance(sample, VideoError):
            raise sample
        several = len(sample.video) > 1  # the head sees several clips at once
        return sample.video if several else sample.video[0], sample.label

    def summary(self) -> str:
        count = self.dataset.resampled
        return f"{count} times another video took the place of a bad one" if count else ""


class MemorySource:
    """Source of inputs in memory, x [N,V,...]. A draw returns a random crop of one of the V views at random.

    grid_crop: side of the crop in cells of the token grid; None, no crop. unit: side of a cell in the last two
    dimensions, 8 for pixels and 1 on the token grid, so that all inputs are cropped alike.
    """

    def __init__(self, x_NV: Tensor, labels: np.ndarray, grid_crop: int | None = None, unit: int = 1, seed: int = 0):
        side = min(x_NV.shape[-2:]) // unit
        if grid_crop is not None and not 1 <= grid_crop <= side:
            raise ValueError(f"crops are 1 to {side} cells of the grid wide and high, not {grid_crop}")
        self.x_NV, self.labels, self.grid_crop, self.unit, self.seed = x_NV, labels, grid_crop, unit, seed

    def __len__(self) -> int:
        return len(self.x_NV)

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([self.seed, epoch, index])
        x = self.x_NV[index, rng.integers(self.x_NV.shape[1])]
        if self.grid_crop is not None:
            top, left = (int(rng.integers(side // self.unit - self.grid_crop, endpoint=True)) for side in x.shape[-2:])
            x = crop_grid(x, top, left, self.grid_crop, self.unit)
        return x, int(self.labels[index])

    def summary(self) -> str:
        return ""


class LabeledBatches:
    """Training batches (x [B,...], labels int64 [B]) by number. Each epoch is reshuffled; a batch may span two epochs.

    Raises:
        ValueError: a batch size below 1, or an empty source.
    """

    def __init__(self, source: Source, batch_size: int, seed: int = 0):
        if batch_size < 1 or not len(source):
            raise ValueError(f"want a batch size of at least 1 and something to train on, got {batch_size}")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.shard_of(number, WHOLE)

    def shard_of(self, number: int, shard: Shard) -> tuple[Tensor, Tensor]:
        """Return a shard of batch `number`. Raises ValueError if the batch doesn't divide into equal shards."""
        return self._rows(number, shard_rows(shard, self.batch_size))

    def _rows(self, number: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        places = [number * self.batch_size + row for row in rows]
        x, labels = zip(*(self.source.draw(*self._place(place)) for place in places), strict=True)
        return torch.stack(x), torch.tensor(labels)

    def loader(self, start: int = 0, workers: int = 0, shard: Shard = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a shard of batches start, start + 1, ... without end, prefetched by `workers` processes."""
        return prefetch(partial(self._rows, rows=shard_rows(shard, self.batch_size)), start, workers)

    def summary(self) -> str:
        return self.source.summary()

    def _place(self, place: int) -> tuple[int, int]:
        """Return (index, epoch) of the sample at a position, counted from the first sample of the first epoch."""
        epoch, place = divmod(place, len(self.source))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        return int(self._order[1][place]), epoch


TESTED_CLIPS = 32  # largest number of clips in a test batch of videos


@dataclass
class HeadInput:
    """Input and classes that a head is built for.

    Attributes:
        input: kind of input, see `vidtok.heads`.
        example: an example input, [1,...].
        classes: class names.
    """

    input: str
    example: Tensor
    classes: list[str]

    @property
    def channels(self) -> int | None:
        """Number of feature channels; None for pixels and ids."""
        return self.example.shape[1] if self.input in ("latents", "hidden", "embedding") else None

    def grid(self, stride: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the size of the token grid, (t, h, w). stride: stride of the tokenizer."""
        if self.input == "pixels":
            T, H, W = self.example.shape[-3:]
            return 1 + (T - 1) // stride[0], H // stride[1], W // stride[2]
        if self.example.ndim > 3:
            t, h, w = self.example.shape[-3:]
            return t, h, w
        return (self.example.shape[1] if self.example.ndim == 3 else 1), 1, 1


@dataclass
class HeadData(HeadInput):
    """Training and test data of a head.

    Attributes:
        input, example, classes: see `HeadInput`.
        train: source of the training batches. encode: maps a batch to the head's input; None, it is the input.
        test: maps a head to its predictions for the test clips. shuffled: the same with shuffled frames, or None.
        select: the same for the training clips that are held out for model selection, or None.
        train_failures: training clips that could not be read, if they are in memory.
    """

    train: Source
    encode: Callable[[Tensor], Tensor] | None
    test: Test
    shuffled: Test | None
    select: Test | None
    train_failures: list[dict] = field(default_factory=list)


def build_recognition_head(settings: dict, head_input: HeadInput, tokenizer: VideoTokenizer) -> Head:
    """Build a head from settings for the input, classes and grid of `head_input`, with the weights of `init` if set.

    Raises:
        ValueError: the head of `init` has another architecture, input or tokenizer.
    """
    net = {**settings["head"], **(settings["head_options"] or {})}
    own = {"bits": tokenizer.bits, "channels": head_input.channels, "stride": tuple(tokenizer.stride)}
    classes, grid = len(head_input.classes), head_input.grid(tokenizer.stride)
    torch.manual_seed(settings["seed"])  # for the initial weights
    head = build_head(net, settings["name"], head_input.input, classes, grid, settings["patch_merge"], own)
    if settings["init"]:
        pretrained = Head.from_pretrained(settings["init"])
        pretrained.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash, tokenizer.encoder.feature_layer)
        head.load_backbone(pretrained)
    return head


@dataclass(frozen=True)
class DataOptions:
    """Options that all kinds of data share.

    Attributes:
        splits, limits: names and largest numbers of videos of (training, test); None, all.
        select: share of the training clips that is held out to choose a checkpoint.
        grid_crop: side of the random crops of the grid for data in memory, see `MemorySource`.
        batch_size: size of training batches, largest size of test batches. workers: number of processes that decode
            test clips.
        seed: seed of the random draws of training.
    """

    splits: tuple[str | None, str | None] = ("train", "val")
    limits: tuple[int | None, int | None] = (None, None)
    select: float = 0.0
    grid_crop: int | None = None
    batch_size: int = 16
    workers: int = 0
    seed: int = 0


def build_data_options(settings: dict) -> DataOptions:
    """Build the options from the group `data` and the seed."""
    data = settings["data"]
    splits, limits = (data["train_split"], data["val_split"]), (data["train_clips"], data["val_clips"])
    rest = {key: data[key] for key in ("select", "grid_crop", "batch_size", "workers")}
    return DataOptions(splits, limits, **rest, seed=settings["seed"])


def memory_head_data(
    train: ClipSet,
    test: ClipSet,
    encoder: InputEncoder,
    encoded: tuple[Tensor, Tensor, Tensor],
    options: DataOptions,
    groups: Sequence[str] | None = None,
) -> HeadData:
    """Build `HeadData` from clips in memory.

    encoded: outputs of `encode_all`, x [N,V,...], for the training clips, the test clips, and the test clips with
    shuffled frames. groups: groups of the training clips, which the split for model selection keeps whole.
    """
    x_train_NV, x_test_NV, x_shuffled_NV = encoded
    kept: slice | np.ndarray = slice(None)  # a view of all, not a copy
    apart: np.ndarray | None = None
    if options.select:
        kept, apart = split_off(train.labels, groups, options.select)
    unit, grid_crop, batch_size = encoder.unit, options.grid_crop, options.batch_size
    source = MemorySource(x_train_NV[kept], train.labels[kept], grid_crop, unit, options.seed)
    return HeadData(
        encoder.head_input,
        unpack(center_crop_grid(x_train_NV[:1, 0], grid_crop, unit)),
        train.classes,
        source,
        unpack,
        memory_test(x_test_NV, test, grid_crop, unit, batch_size),
        memory_test(x_shuffled_NV, test, grid_crop, unit, batch_size),
        None if apart is None else memory_test(x_train_NV[apart], train.subset(apart), grid_crop, unit, batch_size),
        train.failures,
    )


def video_head_data(
    source: ClipSource,
    test_source: ClipSource,
    protocol: Protocol,
    encoder: InputEncoder,
    options: DataOptions,
    **augmentation,
) -> HeadData:
    """Build `HeadData` from videos that are decoded and encoded on the fly, with random clips and crops in training.

    augmentation: scale, flip and augment of `ClipSource.open`. The test uses the classes of the training data.
    """
    splits, limits = options.splits, options.limits
    training = source.open(splits[0], protocol, training=True, seed=options.seed, **augmentation)
    test_source = replace(test_source, classes=training.classes)
    training.keep(slice(limits[0]))
    apart, dataset = None, test_source.open(splits[1], protocol)
    dataset.keep(slice(limits[1]))
    if options.select:
        kept, chosen = split_off(np.array(training.labels), source.groups(training.ids), options.select)
        apart = source.open(splits[0], protocol)
        apart.keep(chosen)
        training.keep(kept)

    # Test batches are smaller: a training batch is divided among processes, and has one view of each video.
    tested = max(1, min(options.batch_size, TESTED_CLIPS) // protocol.views)

    def test_on(videos, shuffle: bool = False) -> Test:
        reading = tested, options.workers, shuffle, encoder.concat_segments
        return lambda head: predict(head, views_of_dataset(videos, *reading), encoder)

    videos = VideoSource(training)
    example = encoder(videos.draw(0, 0)[0][None])
    return HeadData(
        encoder.head_input,
        example,
        training.classes,
        videos,
        encoder,
        test_on(dataset),
        test_on(dataset, shuffle=True),
        None if apart is None else test_on(apart),
    )


def feature_head_data(
    paths: tuple[str, str],
    input: str,
    tokenizer: VideoTokenizer,
    protocol: Protocol,
    options: DataOptions,
    groups_of: Callable[[Sequence[str]], Sequence[str] | None] | None = None,
    cache: str | None = None,
) -> HeadData:
    """Build `HeadData` from files of `vidtok extract`.

    Args:
        paths: files of (training, test). input: input of the head.
        tokenizer, protocol: tokenizer and protocol of the features. options: see `DataOptions`.
        groups_of: maps ids to groups; None, groups from the files.
        cache: cache of the training features, see `TokenDataset`.

    Raises:
        ValueError: training and test share a video.
    """
    splits = options.splits
    train = FeatureFiles(paths[0], splits[0], input, tokenizer, protocol, seed=options.seed, cache=cache)
    test = FeatureFiles(paths[1], splits[1], input, tokenizer, protocol, train.classes)
    train.validate_disjoint(test)
    test.validate_views(protocol)
    for files, limit in zip((train, test), options.limits, strict=True):
        files.first(limit)
    apart = None
    if options.select:
        groups = train.groups if groups_of is None else groups_of(train.ids)
        kept, chosen = split_off(np.array(train.labels), groups, options.select)
        apart = FeatureFiles(paths[0], splits[0], input, tokenizer, protocol).keep(chosen)
        train.keep(kept)

    def test_on(videos: FeatureFiles) -> Test:
        return lambda head: predict(head, videos.views(options.batch_size))

    return HeadData(
        input,
        train.draw(0, 0)[0][None],
        train.classes,
        train,
        None,
        test_on(test),
        None,
        None if apart is None else test_on(apart),
        train.failures,
    )


def validate_mixing(ids: bool, clips: int, averaged: bool) -> None:
    """Raise ValueError for mixup of ids, and for an odd number of clips. averaged: whether mixup is used."""
    if ids and averaged:
        raise ValueError("ids can't be averaged: set task.mixup=0 (cutmix exchanges cells, and is fine)")
    if clips % 2:
        raise ValueError(f"mixup and cutmix pair the clips of a batch, of its parts too: {clips} is odd")


def build_head_data(settings: dict, tokenizer: VideoTokenizer) -> HeadData:
    """Build the data of `finetune` from its settings."""
    data, input = settings["data"], settings["input"]
    protocol = build_protocol(data)
    validate_data_settings(data)
    validate_task(settings, input)
    options = build_data_options(settings)
    source, test_source = build_clip_sources(data)
    if data["features"] is not None:
        paths = data["features"], data["val_features"] or data["features"]
        groups_of = source.groups if data["group_column"] else None
        return feature_head_data(paths, input, tokenizer, protocol, options, groups_of, data["cache"])
    splits = options.splits
    encoder = InputEncoder(input, tokenizer, protocol.at_once)
    source.validate_disjoint(splits[0], test_source, splits[1])
    if not data["in_memory"]:
        augmentation = {key: data[key] for key in AUGMENTATION}
        return video_head_data(source, test_source, protocol, encoder, options, **augmentation)
    validate_no_concat(data)
    train = load_training_clips(source, protocol, data, encoder.encode_compact)
    test_source = replace(test_source, classes=train.classes)
    test = load_clips(test_source.open(splits[1], protocol), data["val_clips"], data["workers"])
    x_test, x_shuffled = (encode_all(encoder, video) for video in (test.video, shuffle_frames(test.video, test.ids)))
    encoded = train.video, x_test, x_shuffled
    return memory_head_data(train, test, encoder, encoded, options, source.groups(train.ids))


def validate_data_settings(data: dict) -> None:
    """Raise ValueError for a setting of the group `data` that has no effect."""
    idle: tuple[str, ...]
    if data["features"] is not None:
        idle = ("concat_segments", "train_views", "grid_crop", "augment", "classes", "task", "checked", "label_column")
        why = "takes videos, not extracted features"
    elif not data["in_memory"]:
        idle, why = ("train_views", "grid_crop"), "takes data.in_memory=true"
    else:
        idle, why = ("augment",) if data["train_views"] is None else (), "takes data.train_views=N in memory"
    for key in idle:
        if data[key]:
            raise ValueError(f"data.{key}={data[key]} {why}")
    if data["val_features"] and data["features"] is None:
        raise ValueError("data.val_features goes with data.features, those of the training")
    if data["cache"] and data["features"] is None:
        raise ValueError("data.cache is of extracted features, data.features, and not of videos")


def validate_no_concat(data: dict) -> None:
    """Raise ValueError if the head sees several random clips at once, before the clips are decoded."""
    if data["concat_segments"]:
        raise ValueError("concatenated clips are random ones of each video, read anew: data.in_memory=false")


def validate_task(settings: dict, input: str) -> None:
    """Raise ValueError if clips can't be mixed as set in the group `task`, before any work is done."""
    task = settings["task"]
    if task["mixup"] or task["cutmix"]:
        validate_mixing(input in ("tokens", "codes"), settings["data"]["batch_size"], averaged=bool(task["mixup"]))
