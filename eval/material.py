"""What a head is trained and tested on, from wherever it comes: videos, clips in memory, or extracted features.

Legend: B batch, V views, N clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from vidtok.tokenizer import VideoTokenizer

from .batches import MemorySource, Source, VideoSource
from .feature_files import FeatureFiles
from .folds import split_off
from .inputs import InputEncoder, centre_cells, unpack
from .labelled_clips import ClipSet, ClipSource, cut
from .predict import Predictions, predict, views_in_memory, views_of_dataset
from .protocol import Protocol

Test = Callable[[nn.Module], Predictions]
TESTED_CLIPS = 32  # at a time, of videos


@dataclass
class Material:
    """Attributes:
    input: the kind that the head is built for, see `vidtok.heads`.
    train: of what batches are made; encode: what stands between a batch and the head.
    example: one input of the head, [1,...].
    test: a head's predictions for the test clips; select: for the training clips that are kept apart, or None.
    classes: their names.
    train_failures: training clips that could not be read, where they are in memory.
    """

    input: str
    train: Source
    encode: Callable[[Tensor], Tensor] | None
    example: Tensor
    test: Test
    shuffled: Test | None
    select: Test | None
    classes: list[str]
    train_failures: list[dict] = field(default_factory=list)

    @property
    def channels(self) -> int | None:
        """Of features; None for pixels and ids."""
        return self.example.shape[1] if self.input in ("latents", "hidden", "embedding") else None

    def grid(self, stride: tuple[int, int, int]) -> tuple[int, int, int]:
        """(t, h, w) of the tokens."""
        if self.input == "pixels":
            T, H, W = self.example.shape[-3:]
            return 1 + (T - 1) // stride[0], H // stride[1], W // stride[2]
        if self.example.ndim > 3:
            return tuple(self.example.shape[-3:])
        return (self.example.shape[1] if self.example.ndim == 3 else 1), 1, 1


def memory_material(
    train: ClipSet,
    test: ClipSet,
    encoder: InputEncoder,
    x_train_NV: Tensor,
    x_test_NV: Tensor,
    x_shuffled_NV: Tensor,
    groups: Sequence[str] | None = None,
    select: float = 0.0,
    cells: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Material:
    """Of clips in memory and what `encode_all` made of them, and of the test clips with shuffled frames.

    select: share of the training clips to choose a checkpoint on. cells: side of the random crops of the grid, see
    `MemorySource`."""
    kept, apart = slice(None), None  # a view of all, not a copy
    if select:
        kept, apart = split_off(train.labels, groups, select)
    unit = encoder.unit
    return Material(
        encoder.head_input,
        MemorySource(x_train_NV[kept], train.labels[kept], cells, unit, seed),
        unpack,
        unpack(centre_cells(x_train_NV[:1, 0], cells, unit)),
        memory_test(x_test_NV, test, cells, unit, batch_size),
        memory_test(x_shuffled_NV, test, cells, unit, batch_size),
        None if apart is None else memory_test(x_train_NV[apart], train.subset(apart), cells, unit, batch_size),
        train.classes,
        train.failures,
    )


def memory_test(x_NV: Tensor, clips: ClipSet, cells: int | None, unit: int, batch_size: int) -> Test:
    """Predictions for encoded clips, x [N,V,...]; those that could not be read count as failures."""

    def test(head: nn.Module) -> Predictions:
        views = views_in_memory(centre_cells(x_NV, cells, unit), clips.labels, clips.ids, batch_size)
        found = predict(head, views, unpack)
        found.failures += clips.failures
        return found

    return test


def video_material(
    source: ClipSource,
    test_source: ClipSource,
    splits: tuple[str | None, str | None],
    protocol: Protocol,
    encoder: InputEncoder,
    select: float = 0.0,
    batch_size: int = 16,
    workers: int = 0,
    seed: int = 0,
    limits: tuple[int | None, int | None] = (None, None),
    **augmentation,
) -> Material:
    """Of videos that are decoded and encoded when they are needed, with random clips and crops in training.

    splits, limits: of training and test: their names, and how many videos at most. augmentation: scale, flip and
    augment of `ClipSource.open`. The classes of the test are those of the training.
    """
    training = source.open(splits[0], protocol, training=True, seed=seed, **augmentation)
    test_source = replace(test_source, classes=training.classes)
    cut(training, slice(limits[0]))
    apart, dataset = None, test_source.open(splits[1], protocol)
    cut(dataset, slice(limits[1]))
    if select:
        kept, chosen = split_off(np.array(training.labels), source.groups(training.ids), select)
        apart = source.open(splits[0], protocol)
        cut(apart, chosen)
        cut(training, kept)

    # A training batch is shared by many processes, and has one view of each video.
    tested = max(1, min(batch_size, TESTED_CLIPS) // protocol.views)

    def test_on(videos, shuffle: bool = False) -> Test:
        at_once = encoder.joined
        return lambda head: predict(head, views_of_dataset(videos, tested, workers, shuffle, at_once), encoder)

    videos = VideoSource(training)
    example = encoder(videos.draw(0, 0)[0][None])
    return Material(
        encoder.head_input,
        videos,
        encoder,
        example,
        test_on(dataset),
        test_on(dataset, shuffle=True),
        None if apart is None else test_on(apart),
        training.classes,
    )


def feature_material(
    paths: tuple[str, str],
    splits: tuple[str | None, str | None],
    input: str,
    tokenizer: VideoTokenizer,
    protocol: Protocol,
    select: float = 0.0,
    batch_size: int = 16,
    seed: int = 0,
    groups_of: Callable[[Sequence[str]], list[str]] | None = None,
    cache: str | None = None,
    limits: tuple[int | None, int | None] = (None, None),
) -> Material:
    """Of the files of `vidtok extract`. paths, splits, limits: of training and test; limits: how many videos at most.
    groups_of: the group of each of some ids; None, what the files know of groups. cache: of the training features, see
    `TokenDataset`. Raises ValueError where a video is in training and test."""
    train = FeatureFiles(paths[0], splits[0], input, tokenizer, protocol, seed=seed, cache=cache)
    test = FeatureFiles(paths[1], splits[1], input, tokenizer, protocol, train.classes)
    train.refuse_overlap(test)
    test.refuse_other_views(protocol)
    for files, limit in zip((train, test), limits, strict=True):
        files.first(limit)
    apart = None
    if select:
        groups = train.groups if groups_of is None else groups_of(train.ids)
        kept, chosen = split_off(np.array(train.labels), groups, select)
        apart = FeatureFiles(paths[0], splits[0], input, tokenizer, protocol).keep(chosen)
        train.keep(kept)

    def test_on(videos: FeatureFiles) -> Test:
        return lambda head: predict(head, videos.views(batch_size))

    return Material(
        input,
        train,
        None,
        train.draw(0, 0)[0][None],
        test_on(test),
        None,
        None if apart is None else test_on(apart),
        train.classes,
        train.failures,
    )
