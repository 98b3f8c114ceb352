"""How good generated clips are: FVD, FID of their frames, whether a recogniser sees the class that was asked for.

Result schema "vidtok.eval.generation/1":

    schema       that string
    generator    name, kind, parameters; tokenizer {name, weight_hash}
    sampling     settings of `generate`, with the seed
    protocol     convention and all of its settings, real and conditioning data in words
    detector     of each metric: what network, hash of its weights
    n_real, n_fake (clips; the latter of a fold), folds
    metrics      fvd, fid: {mean, deviation (sample standard deviation over folds; null for one), folds [..]};
                 fvd_floor (other real clips against the same real ones), fvd_reconstruction (these, decoded),
                 agreement: {value, low, high (Wilson), n, classes {name: share}}, real_agreement: the same of the other
                 real clips' tokens
    neighbours   where they were drawn: n_real (clips that were looked at), generated: [distance of each to the nearest
                 of them, in the features of FVD]; others: [the same of other real clips]
    seconds_per_clip    of sampling
    provenance   git, versions, device, threads, date

Legend: B batch, T H W video, D features.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidtok.hints import nearest

from .fvd import GaussianStatistics, frechet_distance

SCHEMA = "vidtok.eval.generation/1"
Features = Callable[[Tensor], Tensor]  # [B, 3, T, H, W] in [-1, 1] to [B or B T, D]


@dataclass(frozen=True)
class Convention:
    """What makes figures of different papers comparable; a name for all of it.

    Attributes:
        frames: of each clip that are scored, the first ones; None, all.
        score_size: pixels; clips are cropped to their central square and resized to it, bilinear, before scoring. None,
            scored as they are.
        n_real: real clips; None, all that there are. windows, crops: clips of each real video, in time and in space.
        random: whether its clips begin anywhere, or are spread evenly, a single one in the middle.
        n_fake, folds: generated clips of a fold; independent folds, whose figures' mean and deviation are reported.
        generated_size: pixels of the clips that are scored; None, any.
        given_frames: frames of a real clip that each generated one goes on from.
        real: which clips are the real ones, in words; of which split, and of what size clips are generated, is said
            beside it. Papers take the eval split of Kinetics-600, and the training splits elsewhere.
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
    # MAGVIT, appendix B.3, which MAGVIT-v2 follows (Table 1).
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
    # StyleGAN-V's fvd2048_16f.
    "stylegan-v-2048x16": Convention(
        16, None, 2048, random=True, n_fake=2048, real="a random clip of each of 2048 videos"
    ),
}


def convention(name: str) -> Convention:
    """Raises ValueError for an unknown name."""
    if name not in CONVENTIONS:
        raise ValueError(f"unknown convention {name!r}: {nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]


def prepare(video_BCTHW: Tensor, how: Convention) -> Tensor:
    """The clips as the convention scores them.

    Raises:
        ValueError: for clips of fewer frames than it scores.
    """
    T = video_BCTHW.shape[2]
    if how.frames is not None and how.frames > T:
        raise ValueError(f"the convention scores {how.frames} frames, and clips have {T}")
    video = video_BCTHW[:, :, : how.frames]
    if how.score_size is None:
        return video
    height, width = video.shape[3:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    video = video[..., top : top + side, left : left + side]
    if side == how.score_size:
        return video
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (how.score_size, how.score_size), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


class ClipStatistics:
    """Streaming statistics of what each of several networks makes of the same clips.

    Attributes:
        n: clips so far.
        kinds: name of each network -> its `GaussianStatistics`, of float64.
    """

    def __init__(self, networks: Mapping[str, Features], how: Convention):
        self.networks, self.how = networks, how
        self.n = 0
        self.kinds: dict[str, GaussianStatistics] = {}

    def update(self, video_BCTHW: Tensor) -> None:
        """Raises ValueError for clips that the convention can't score."""
        scored = prepare(video_BCTHW, self.how)
        for kind, network in self.networks.items():
            with torch.inference_mode():
                features = network(scored)
            if kind not in self.kinds:
                self.kinds[kind] = GaussianStatistics(features.shape[1])
            self.kinds[kind].update(features)
        self.n += len(video_BCTHW)

    def distance(self, kind: str, other: "ClipStatistics") -> float:
        """Fréchet distance between the Gaussians of one network's features."""
        return frechet_distance(self.kinds[kind], other.kinds[kind])


def score_clips(
    clips: Iterable[Tensor], networks: Mapping[str, Features], how: Convention, count: int | None = None
) -> ClipStatistics:
    """Of clips [B, 3, T, H, W] that come in batches, the first `count` at most.

    Raises:
        ValueError: where there are none.
    """
    found = ClipStatistics(networks, how)
    for video in clips:
        found.update(video if count is None else video[: count - found.n])
        if found.n == count:
            break
    if found.n == 0:
        raise ValueError("no clips to score")
    return found


def over_folds(values: list[float]) -> dict:
    """mean, deviation (None for one fold) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "folds": values}


def frames_of(features: Features) -> Features:
    """Features of frames, as those of a clip: every frame counts."""
    return lambda video: features(video.transpose(1, 2).flatten(0, 1))


def describe(how: Convention, name: str, clip_size: int, **more) -> dict:
    """The protocol of a result. clip_size: pixels of the clips; if they aren't the convention's, its name says so."""
    if how.generated_size not in (None, clip_size):
        name = f"{name}, but of clips of {clip_size} pixels"
    return {"convention": name, **asdict(how), "clip_size": clip_size, **more}


class Neighbours:
    """Of each of N generated clips the `count` nearest of all real clips that pass by, by their features."""

    def __init__(self, fake_ND: Tensor, count: int = 3):
        self.fake_ND, self.count = fake_ND.double(), count
        self.distances = torch.empty(len(fake_ND), 0, dtype=torch.float64)  # [N, count], ascending
        self.pictures: list[list[Tensor]] = [[] for _ in fake_ND]  # of the real clips, in the same order

    def update(self, real_BD: Tensor, pictures: Sequence[Tensor]) -> None:
        """Real clips' features, and what shall be shown of each."""
        known = self.distances.shape[1]
        distances = torch.cat([self.distances, torch.cdist(self.fake_ND, real_BD.double())], 1)
        self.distances, places = distances.topk(min(self.count, distances.shape[1]), largest=False)
        self.pictures = [
            [own[place] if place < known else pictures[place - known] for place in row]
            for own, row in zip(self.pictures, places.tolist(), strict=True)
        ]
