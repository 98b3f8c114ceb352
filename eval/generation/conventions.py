"""Evaluation conventions of generated clips, and the real clips that they are compared with.

The metrics are Fréchet distances (FVD, FID of frames, FRD in the features of a recognizer), fidelity and coverage by
nearest neighbors in the features of FVD and FRD, and agreement: the share of clips for which a recognizer predicts the
requested class.

Result schema "vidtok.eval.generation/1":

    schema       that string
    generator    name, kind, parameters, weight_hash; tokenizer {name, weight_hash}
    sampling     settings of `generate`, with the seed
    protocol     convention and all of its settings, descriptions of the real and the conditioning data
    detector     for each metric: its network, hash of its weights
    n_real, n_fake (numbers of clips, n_fake per fold), folds
    metrics      fvd, fid, frd, and fvd_to_reconstructions, ...: the same distance from reconstructions of the reference
                 clips (not of a recognizer of tokens): {mean, deviation (sample standard deviation over folds; null for
                 one), folds [..]}; fvd_precision, frd_recall, ...: the same of `vidtok.eval.metrics.frechet`, with low
                 and high (95 %, Wilson, of all folds together) and n where it is a share. Fold i is compared with the
                 i-th n_fake reference clips, in turn. Folds of fewer than 4 clips have none.
                 METRIC_floor: {value, n} of other real clips, METRIC_reconstruction: of their reconstructions,
                 METRIC_repeated: where frames are given, of reconstructions of clips that repeat the last given one.
                 agreement: {value, low, high (Wilson), n, classes {name: share}}, real_agreement: the same for the
                 tokens of the other real clips
    neighbors    if they were drawn: n_real (number of real clips searched), generated: [distance of each generated clip
                 to the nearest real one, in the features of FVD]; others: [the same for other real clips]
    seconds_per_clip    sampling time
    provenance   git, versions, device, threads, date

Results of earlier versions lack the generator's weight_hash and METRIC_repeated.

Legend: B batch, T H W video, D features.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidtok.datasets import (
    EvalTransform,
    LabeledDataset,
    MovingDigits,
    VideoError,
    dense_clips,
    open_dataset,
    random_clip,
)
from vidtok.datasets.sources import is_folder
from vidtok.errors import nearest
from vidtok.eval.metrics.frechet import NEIGHBORS, GaussianStatistics, frechet_distance, manifold_metrics
from vidtok.eval.metrics.intervals import wilson_interval
from vidtok.generator import GeneratorConfig
from vidtok.inputs import subfolders

SCHEMA = "vidtok.eval.generation/1"
Features = Callable[[Tensor], Tensor]  # [B, 3, T, H, W] in [-1, 1] to [B or B T, D]


@dataclass(frozen=True)
class Convention:
    """Evaluation settings that make results comparable with those of a paper.

    Attributes:
        frames: number of first frames of a clip that are scored; None, all.
        score_size: side in pixels to which the central square of a clip is resized (bilinear) before scoring; None,
            clips are scored at their size.
        n_real: number of real clips; None, all. windows, crops: number of clips of each real video in time and space.
        random: whether real clips start at random times; otherwise they are spread evenly, and a single one is taken
            from the middle.
        n_fake, folds: number of generated clips per fold, and number of independent folds; mean and deviation over
            folds are reported.
        generated_size: side of the generated clips in pixels; None, any.
        given_frames: number of frames of a real clip that each generated clip continues.
        real: description of the real clips; their split and size are recorded separately. Papers use the validation
            split of Kinetics-600, and the training splits of other sets.
    """

    frames: int | None = None
    score_size: int | None = None
    n_real: int | None = None
    windows: int = 1
    crops: int = 1
    random: bool = False
    n_fake: int = 2048
    folds: int = 1
    generated_size: int | None = None
    given_frames: int = 0
    real: str = "as given"


CONVENTIONS = {
    "plain": Convention(),
    # MAGVIT, appendix B.3; MAGVIT-v2 follows it (Table 1).
    "magvit-k600": Convention(
        16,
        64,
        None,
        windows=2,
        crops=3,
        n_fake=50_000,
        folds=4,
        generated_size=128,
        given_frames=5,
        real="6 clips of each video",
    ),
    "magvit-ucf": Convention(
        16, 128, None, random=True, n_fake=10_000, folds=4, generated_size=128, real="a random clip of each video"
    ),
    # fvd2048_16f of StyleGAN-V.
    "stylegan-v-2048x16": Convention(
        16, None, 2048, random=True, n_fake=2048, real="a random clip of each of 2048 videos"
    ),
}


def get_convention(name: str) -> Convention:
    """Return the convention of a name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"unknown convention {name!r}: {nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]


def prepare(video_BCTHW: Tensor, convention: Convention) -> Tensor:
    """Cut and resize clips [B, 3, T, H, W] to the frames and size that the convention scores.

    Raises:
        ValueError: clips of fewer frames than it scores.
    """
    T = video_BCTHW.shape[2]
    if convention.frames is not None and convention.frames > T:
        raise ValueError(f"the convention scores {convention.frames} frames, and clips have {T}")
    video = video_BCTHW[:, :, : convention.frames]
    if convention.score_size is None:
        return video
    height, width = video.shape[3:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    video = video[..., top : top + side, left : left + side]
    if side == convention.score_size:
        return video
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (convention.score_size, convention.score_size), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


class ClipStatistics:
    """Streaming statistics of the features that several networks compute for the same clips.

    Args:
        networks: name of each network that sees the frames that the convention scores -> the network.
        convention: the convention.
        head: the features of a recognizer, named "frd", which sees whole clips or their tokens; None, no recognizer.
        keep: number of first clips whose features are kept, for nearest neighbors.

    Attributes:
        n: number of clips so far.
        kinds: name of each network -> its `GaussianStatistics` in float64.
    """

    def __init__(
        self,
        networks: Mapping[str, Features],
        convention: Convention,
        head: Callable[[Tensor | None, Tensor | None], Tensor] | None = None,
        keep: int = 0,
    ):
        self.networks, self.convention, self.head, self.keep = networks, convention, head, keep
        self.n = 0
        self.kinds: dict[str, GaussianStatistics] = {}
        self._kept: dict[str, list[Tensor]] = {}

    def update(self, video_BCTHW: Tensor | None, ids_Bthw: Tensor | None = None) -> None:
        """Add clips. Raises ValueError for clips that the convention can't score.

        Args:
            video_BCTHW: the clips; None if only a recognizer of tokens sees them.
            ids_Bthw: their tokens; None if none sees these.
        """
        given = ids_Bthw if video_BCTHW is None else video_BCTHW
        assert given is not None, "clips are given as such or as tokens"
        count = len(given)
        with torch.inference_mode():
            for kind, network in self.networks.items():
                assert video_BCTHW is not None, f"{kind} is of clips"
                self._add(kind, network(prepare(video_BCTHW, self.convention)), count)
            if self.head is not None:
                self._add("frd", self.head(video_BCTHW, ids_Bthw), count)
        self.n += count

    def _add(self, kind: str, features: Tensor, clips: int) -> None:
        if kind not in self.kinds:
            self.kinds[kind], self._kept[kind] = GaussianStatistics(features.shape[1]), []
        self.kinds[kind].update(features)
        if len(features) == clips and self.n < self.keep:  # features of frames have no neighbors: they are not samples
            self._kept[kind].append(features[: self.keep - self.n].float())

    def distance(self, kind: str, other: "ClipStatistics") -> float:
        """Return the Fréchet distance between the Gaussians of one network's features."""
        return frechet_distance(self.kinds[kind], other.kinds[kind])

    def neighborhood(self, kind: str, other: "ClipStatistics", turn: int = 0) -> dict[str, float]:
        """Compare generated clips with equally many of these real ones, see `vidtok.eval.metrics.frechet`.

        Args:
            kind: name of the network. other: the generated clips.
            turn: which of the real clips: from number turn times that of the generated ones on, in turn.

        Returns:
            precision, recall, density, coverage; empty for features of frames and for too few clips.
        """
        if not (self._kept[kind] and other._kept[kind]):
            return {}
        real, fake = torch.cat(self._kept[kind]), torch.cat(other._kept[kind])
        count = min(len(real), len(fake))
        if count <= NEIGHBORS:
            return {}
        return manifold_metrics(real.roll(-turn * count, 0)[:count], fake[:count])


def over_folds(values: list[float]) -> dict:
    """Return {mean, deviation, folds}: mean, sample standard deviation (None for one fold) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "folds": values}


def shares_over_folds(values: list[float], n: int) -> dict:
    """Return `over_folds` of shares of n clips each, with low, high (Wilson, 95 %, of all clips together) and their
    number n. The interval leaves out that the clips of the other side might have been others."""
    total = n * len(values)
    low, high = wilson_interval(round(sum(values) * n), total)
    return {**over_folds(values), "low": low, "high": high, "n": total}


def frames_of(features: Features) -> Features:
    """Apply a network for frames to clips: return a function that computes the features of every frame."""
    return lambda video: features(video.transpose(1, 2).flatten(0, 1))


def describe(convention: Convention, name: str, clip_size: int, **more) -> dict:
    """Return the protocol of a result. clip_size: in pixels; the name mentions it unless it is the convention's."""
    if convention.generated_size not in (None, clip_size):
        name = f"{name}, but of clips of {clip_size} pixels"
    return {"convention": name, **asdict(convention), "clip_size": clip_size, **more}


class Neighbors:
    """Nearest neighbors: for each of N generated clips, the `count` real clips with the nearest features."""

    def __init__(self, fake_ND: Tensor, count: int = 3):
        self.fake_ND, self.count = fake_ND.double(), count
        self.distances = torch.empty(len(fake_ND), 0, dtype=torch.float64)  # [N, count], ascending
        self.pictures: list[list[Tensor]] = [[] for _ in fake_ND]  # pictures of the real clips, in the same order

    def update(self, real_BD: Tensor, pictures: Sequence[Tensor]) -> None:
        """Add real clips, given by their features and pictures."""
        known = self.distances.shape[1]
        distances = torch.cat([self.distances, torch.cdist(self.fake_ND, real_BD.double())], 1)
        self.distances, places = distances.topk(min(self.count, distances.shape[1]), largest=False)
        self.pictures = [
            [own[place] if place < known else pictures[place - known] for place in row]
            for own, row in zip(self.pictures, places.tolist(), strict=True)
        ]


@dataclass
class RealClips:
    """Real clips that generators are compared with.

    Attributes:
        clips: returns an iterator over the reference clips in batches [B, 3, T, H, W].
        others: returns an iterator over other real clips with their labels [B], for the floor and the reconstructions;
            or None.
        classes: class names.
        about: description of both, for the protocol.
    """

    clips: Callable[[], Iterable[Tensor]]
    others: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None
    classes: Sequence[str]
    about: dict


def real_clips(
    source: str,
    root: str | None,
    split: str | None,
    others: str | None,
    config: GeneratorConfig,
    convention: Convention,
    batch: int = 8,
    workers: int = 0,
    **columns: Any,
) -> RealClips:
    """Open real clips with the size and length of a generator's clips.

    Args:
        source, root, columns: see `vidtok.datasets.open_dataset`; "digits" is the built-in set.
        split: split of the reference clips; None, "train", or all of a folder without a folder "train".
        others: split of other real clips, or None.
        config: config of the generator. convention: sets windows and crops of each video.
        batch: number of videos per batch.
        workers: number of decoding processes; the clips and their order do not depend on it, except that a process
            gives up a video after a minute.

    Raises:
        ValueError: an unknown source or split, or a generator of clips that aren't square.
    """
    frames = 1 + config.stride[0] * (config.grid[0] - 1)
    size, width = (n * stride for n, stride in zip(config.grid[1:], config.stride[1:], strict=True))
    if size != width:
        raise ValueError(f"clips of {size} x {width} pixels are compared with nothing: real clips are cut square")
    if split is None and (source == "digits" or not is_folder(source) or "train" in map(str.lower, subfolders(source))):
        split = "train"
    if others is not None and split is None:
        raise ValueError(
            f"{source} has no folder train: say which split others are compared with (--split, real_split=), or go "
            f"without other real clips than those (--others, other_split={others})"
        )
    if others is not None and others == split:
        raise ValueError(f"other real clips than those of {split!r} are of another split than {others!r}")

    def opened(part: str | None) -> LabeledDataset:
        if source == "digits":
            return MovingDigits(part or "train", frames, size)
        drawn = random_clip if convention.random else dense_clips
        sampler = partial(drawn, frames=frames, clips=convention.windows, at_fps=config.fps)
        reading: dict[str, Any] = {
            "sampler": sampler,
            "transform": EvalTransform(size, convention.crops),
            "on_error": "return",
        }
        return open_dataset(source, root, part, config.classes or None, **columns, **reading)

    def batches(part: str | None) -> Iterator[tuple[Tensor, Tensor]]:
        dataset = opened(part)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
        samples = dataset.samples(order, workers, ahead=-(-2 * batch // max(workers, 1)))  # two batches
        while read := list(itertools.islice(samples, batch)):
            good = [sample for sample in read if not isinstance(sample, VideoError)]
            if good:
                labels = [label for sample in good for label in [sample.label] * len(sample.video)]
                yield torch.cat([sample.video for sample in good]), torch.tensor(labels)

    about: dict[str, Any] = {
        "source": source,
        "split": split or "all",
        "others": others,
        "clip_frames": frames,
        "clip_size": size,
    }
    about |= {"order": "random, seed 0", "fps": config.fps or "native", "unreadable": "left out"}
    return RealClips(
        lambda: (video for video, _ in batches(split)),
        None if others is None else lambda: batches(others),
        opened(split).classes,
        about,
    )
