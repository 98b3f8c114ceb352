"""How good generated clips are: FVD, FID of their frames, whether a recogniser sees the class that was asked for.

Result schema "vidtok.eval.generation/1":

    schema       that string
    generator    name, kind, parameters; tokenizer {name, weight_hash}
    sampling     settings of `generate`, with the seed
    protocol     convention and all of its settings, real and conditioning data in words
    detector     of each metric: what network, hash of its weights
    n_real, n_fake (of a fold), folds
    metrics      fvd, fid: {mean, deviation (sample standard deviation over folds; null for one), folds [..]};
                 fvd_floor (other real clips against the same real ones), fvd_reconstruction (these, decoded),
                 agreement: {value, low, high} (Wilson), with that of the real clips' tokens beside it
    seconds      of sampling, per clip
    provenance   git, versions, device, threads, date

Legend: B batch, T H W video, D features.
"""

import hashlib
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

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
        n_fake, folds: generated clips of a fold; independent folds, whose figures' mean and deviation are reported.
        given_frames: frames of a real clip that each generated one goes on from.
        real: which clips are the real ones, in words.
    """

    frames: int | None = None
    score_size: int | None = None
    n_real: int | None = None
    windows: int = 1
    crops: int = 1
    n_fake: int = 2048
    folds: int = 1
    given_frames: int = 0
    real: str = "as given"


CONVENTIONS = {
    "plain": Convention(),
    # MAGVIT, appendix B.3, which MAGVIT-v2 follows (Table 1).
    "magvit-k600": Convention(
        16, 64, None, windows=2, crops=3, n_fake=50_000, folds=4, given_frames=5, real="6 clips of each eval video"
    ),
    "magvit-ucf": Convention(16, 128, None, n_fake=10_000, folds=4, real="a random clip of each training video"),
    # StyleGAN-V's fvd2048_16f.
    "stylegan-v-2048x16": Convention(16, None, 2048, n_fake=2048, real="random clips of the training videos"),
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


def gather(clips: Iterable[Tensor], features: Features, how: Convention, count: int | None = None) -> Tensor:
    """Features float32 [N, D] of clips that come in batches, of the first `count` at most."""
    found, n = [], 0
    with torch.inference_mode():
        for video in clips:
            video = video if count is None else video[: count - n]
            found.append(features(prepare(video, how)).float().cpu())
            n += len(video)
            if n == count:
                break
    if not found:
        raise ValueError("no clips to score")
    return torch.cat(found)


def distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Fréchet distance between the Gaussians of two sets of features."""
    sides = []
    for features in (a_ND, b_ND):
        statistics = GaussianStatistics(features.shape[1])
        for part in features.split(4096):
            statistics.update(part)
        sides.append(statistics)
    return frechet_distance(*sides)


def over_folds(values: list[float]) -> dict:
    """mean, deviation (None for one fold) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "folds": values}


def frames_of(features: Features) -> Features:
    """Features of frames, as those of a clip: every frame counts."""
    return lambda video: features(video.transpose(1, 2).flatten(0, 1))


class InceptionFID:
    """The 2048 features that FID is defined by, of frames [N, 3, H, W] in [-1, 1].

    Args:
        weights: the Inception network as TorchScript, from [N, 3, 299, 299], (x - 128) / 128 of 8-bit values x, to
            [N, 2048]. A TorchScript file is a program: give only one that you trust.
    """

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu"):
        self.network = torch.jit.load(str(weights), map_location=device).eval()

    def __call__(self, frames_NCHW: Tensor) -> Tensor:
        frames = F.interpolate(frames_NCHW, (299, 299), mode="bilinear", align_corners=False)
        return self.network((frames * 127.5 - 0.5) / 128).flatten(1)


def file_hash(path: str | Path) -> str:
    """First 16 hex digits of a file's sha256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def describe(how: Convention, name: str, **more) -> dict:
    """The protocol of a result."""
    return {"convention": name, **asdict(how), **more}


def nearest_real(fake_ND: Tensor, real_ND: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """Of each generated clip the `count` real ones with the nearest features: (distances, numbers), [N, count]."""
    distances = torch.cdist(fake_ND.double(), real_ND.double())
    return distances.topk(min(count, len(real_ND)), largest=False)
