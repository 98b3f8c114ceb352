"""Evaluation of a tokenizer's reconstructions: clips, the block-mean baseline, metrics and the result.

Result schema "vidtok.eval.reconstruction/1":

    schema          that string
    tokenizer       name, weight_hash (or null), stride [s_t, s_h, s_w], bits
    protocol        source, split, frames, size, crop, fps (from `clip_protocol`) and one line on each metric
    n_total         number of clips = n_used + n_failed
    n_used, n_failed
    failures        [{name, reason}]: clips that could not be read or encoded; they are not replaced
    metrics         name -> {mean, stderr, n}; stderr is the standard error over clips, null for n = 1
                    psnr, block_mean_psnr, psnr_gain (dB; paired difference of the two), ssim, bits_per_pixel;
                    block_ratio, block_phases (see `block_edges`) if the token grid has borders;
                    lpips (VGG), lpips_alex (AlexNet) and rfvd ({mean: the distance, stderr: null, n}) if their
                    networks are given
    codebook        size, tokens, distinct, usage (distinct/size), entropy_bits, bit_balance [bits]
    clips           [{name, and each metric but rfvd}], in order
    provenance      git, versions, device, threads, date
    wall_time_s     seconds, reading included

Shape suffixes: B batch, C channels (RGB), T time, H height, W width.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vidtok.datasets import MovingDigits, VideoError, read_video
from vidtok.eval.metrics.frechet import GaussianStatistics, frechet_distance
from vidtok.eval.metrics.i3d import I3D, I3D_FEATURES
from vidtok.eval.metrics.reconstruction import CodebookUsage, bits_per_pixel, block_edges, psnr, ssim
from vidtok.extraction.model import open_tokenizer
from vidtok.inputs import find_videos
from vidtok.names import escape_name
from vidtok.provenance import provenance
from vidtok.train.perceptual import LPIPS

Clip = tuple[str, Tensor | Exception]  # name and float [1,3,T,H,W] in [-1,1], or the error of a failed clip


def validation_clips(
    paths: Iterable[str | Path],
    frames: int = 17,
    size: int = 128,
    fps: float | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
) -> Iterator[Clip]:
    """Read the first `frames` frames of each file: short side `size`, center crop to `size` x `size`.

    Args:
        paths: video files.
        frames: number of frames of a clip. size: side of the clips in pixels.
        fps: frames per second to resample to; None, the file's rate.
        stride: stride of the tokenizer that the clips are for, (s_t, s_h, s_w).

    Yields:
        (path, float32 [1,3,frames,size,size] in [-1,1]); paths are escaped, see `vidtok.names`. For a file that can't
        be read or is too short, (path, exception): `evaluate_reconstruction` counts it as failed and never replaces it.

    Raises:
        ValueError: frames isn't 1 + a multiple of s_t, or size isn't a multiple of s_h and s_w.
    """
    _check_shape(frames, size, stride)
    return (_read(Path(path), frames, size, fps) for path in paths)


def _check_shape(frames: int, size: int, stride: tuple[int, int, int]) -> None:
    s_t, s_h, s_w = stride
    if frames < 1 or (frames - 1) % s_t:
        raise ValueError(f"clips have 1, {1 + s_t}, {1 + 2 * s_t}, ... frames, got {frames}")
    if size < 1 or size % s_h or size % s_w:
        raise ValueError(f"clips are a multiple of {math.lcm(s_h, s_w)} pixels wide and high, got {size}")


def clip_protocol(
    source: str, split: str | None = None, frames: int = 17, size: int = 128, fps: float | None = None
) -> dict:
    """Return the `protocol` of a result for clips of `validation_clips` with these arguments.

    Args:
        source: name of the data set or folder. split: name of its split.
    """
    return {
        "source": source,
        "split": split,
        "frames": frames,
        "size": [size, size],
        "crop": f"first {frames} frames, short side {size}, center crop",
        "fps": "native" if fps is None else fps,
    }


def _read(path: Path, frames: int, size: int, fps: float | None) -> Clip:
    try:
        video_BCTHW = read_video(path, fps, (size, size), frames, stride=(1, 1, 1))
        if video_BCTHW.shape[2] < frames:
            raise VideoError(path, f"fewer than {frames} frames")
    except VideoError as error:
        return escape_name(str(path)), error
    return escape_name(str(path)), video_BCTHW


def block_mean_baseline(video_BCTHW: Tensor, stride: tuple[int, int, int] = (4, 8, 8)) -> Tensor:
    """Replace every cell of the token grid by its mean color, upsampled smoothly: a baseline for tokenizers.

    Cells are s_t frames by s_h x s_w pixels. The cells of the first frame are 1 x s_h x s_w, as in a causal tokenizer.
    In time, the mean is repeated for its s_t frames. In space, it is upsampled bicubically (a = -0.75 as in torch and
    OpenCV, half-pixel centers) and clamped to [-1,1]. The means are not quantized: they take 3 floats per cell, far
    more than 18 bits.

    On 131 clips of video-val (first 17 frames, short side 128 by area averaging, center crop) its mean PSNR is
    22.21 dB. If the clips are resized bicubically, they are sharper and the PSNR is 21.36 dB; bilinearly, 21.88 dB. So
    compare values only on clips from the same reader. Linear interpolation in time adds 0.04 dB.

    Args:
        video_BCTHW: float [B,3,T,H,W] in [-1,1], T = 1 + a multiple of s_t, H and W multiples of s_h and s_w.
        stride: (s_t, s_h, s_w).

    Returns:
        float [B,3,T,H,W] in [-1,1].

    Raises:
        ValueError: the shape isn't a multiple of the stride as described.
    """
    s_t, s_h, s_w = stride
    frames, height, width = video_BCTHW.shape[-3:]
    if video_BCTHW.ndim != 5 or (frames - 1) % s_t or height % s_h or width % s_w:
        raise ValueError(f"grid {s_t}x{s_h}x{s_w} does not fit a clip of shape {[*video_BCTHW.shape]}")
    first = F.avg_pool3d(video_BCTHW[:, :, :1], (1, s_h, s_w))
    means = [first]
    if frames > 1:
        rest = F.avg_pool3d(video_BCTHW[:, :, 1:], (s_t, s_h, s_w))
        means.append(rest.repeat_interleave(s_t, dim=2))
    frames_NCHW = torch.cat(means, dim=2).transpose(1, 2).flatten(0, 1)
    large_NCHW = F.interpolate(frames_NCHW, size=(height, width), mode="bicubic")
    return large_NCHW.clamp(-1, 1).unflatten(0, (len(video_BCTHW), -1)).transpose(1, 2)


SCHEMA = "vidtok.eval.reconstruction/1"


class Tokenizer(Protocol):
    """Interface of a tokenizer: clips float [B,3,T,H,W] in [-1,1] to ids int64 [B,t,h,w], and back."""

    @property
    def stride(self) -> tuple[int, int, int]: ...

    @property
    def bits(self) -> float: ...

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, ids: Tensor) -> Tensor: ...


def evaluate(
    inputs: str | Sequence[str],
    *,
    model: str = "vidtok-t",
    device: str = "auto",
    precision: str = "fp32",
    frames: int = 17,
    size: int = 128,
    fps: float | None = None,
    clips: int | None = None,
    split: str | None = None,
    lpips: str | None = None,
    lpips_alex: str | None = None,
    i3d: str | None = None,
    batch_size: int = 1,
    track: Callable[[Iterator[Clip], int], Iterable[Clip]] = lambda clips, total: clips,
) -> dict:
    """Measure the reconstructions of a tokenizer: PSNR, SSIM, block edges, rate, codebook usage, LPIPS, rFVD.

    Args:
        inputs: one or more videos, folders of videos, or glob patterns, of which one clip is taken from each file; or
            "digits", the clips of `vidtok.datasets.MovingDigits`.
        model: tokenizer, as for `vidtok.extraction.model.open_tokenizer`.
        device: device of all networks. precision: precision of the tokenizer, "fp32" or "bf16".
        frames, size, fps: shape and frame rate of the clips, see `validation_clips`.
        clips: number of files or digits' clips, evenly spread over all; None, all.
        split: name of the split, for the record; of digits "train", or "val" (default), which is made of other digits.
        lpips, lpips_alex: files of VGG16's and AlexNet's weights; None leaves LPIPS by that network out.
        i3d: file of I3D's weights; None leaves rFVD out.
        batch_size: number of clips per batch. The metrics don't depend on it.
        track: called with the clips and their number, returns the clips; for a progress bar.

    Returns:
        A result of schema "vidtok.eval.reconstruction/1". Clips that can't be read count as failed.

    Raises:
        UserError: no video in the inputs.
        ValueError: the clip shape doesn't fit the tokenizer, no clip could be evaluated, or digits have no such split
            or frame rate.
    """
    inputs = [inputs] if isinstance(inputs, str) else [str(each) for each in inputs]
    digits = None
    if inputs == ["digits"]:
        if fps is not None:
            raise ValueError(f"digits have {MovingDigits.fps:g} frames/s: leave out fps={fps:g}")
        digits = MovingDigits(split or "val", frames, size)
    files: Sequence[Path] = [] if digits is not None else [file for file, _ in find_videos(inputs)]
    total, what = (len(files), "files") if digits is None else (len(digits), "clips of all motions in turn")
    chosen = {} if clips is None else {"clips": f"{clips} of {total} {what}, evenly spread"}
    tokenizer = open_tokenizer(model, device, precision)
    if why := tokenizer.lacks.get("recon"):
        raise ValueError(f"no reconstructions: {why}")
    protocol = clip_protocol(" ".join(inputs), split, frames, size, fps)
    videos: Iterator[Clip]
    if digits is None:
        files = spread(files, clips or total)
        count = len(files)
        videos = validation_clips(files, frames, size, fps, tokenizer.stride)
    else:
        _check_shape(frames, size, tokenizer.stride)
        count = min(clips or total, total)
        videos = digit_clips(digits, count)
        protocol |= {"split": digits.split, "crop": "rendered", "fps": digits.fps}
    networks = (("lpips", "vgg", lpips), ("lpips_alex", "alex", lpips_alex))
    return evaluate_reconstruction(
        tokenizer,
        track(videos, count),
        name=tokenizer.config.name,
        weight_hash=tokenizer.weight_hash,
        protocol={**protocol, "precision": precision, **chosen},
        lpips={metric: LPIPS(net, file).to(tokenizer.device) for metric, net, file in networks if file},
        fvd=I3D(i3d).to(tokenizer.device) if i3d else None,
        batch_size=batch_size,
        device=tokenizer.device,
    )


def digit_clips(digits: MovingDigits, count: int) -> Iterator[Clip]:
    """Yield `count` clips of evenly spread digits, with each of the motions in turn; none twice."""
    motions = len(digits.classes)
    for i in range(count):
        index = i * (len(digits) // motions) // count * motions + i % motions
        yield digits.ids[index], digits[index].video


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """Choose `count` evenly spaced files, including the first and the last; all if there are no more than `count`."""
    if count >= len(files):
        return list(files)
    return [files[round(i * (len(files) - 1) / max(1, count - 1))] for i in range(count)]


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    videos: Iterable[Clip],
    *,
    name: str,
    protocol: Mapping,
    weight_hash: str | None = None,
    lpips: Mapping[str, LPIPS] | None = None,
    fvd: I3D | None = None,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
) -> dict:
    """Encode and decode every clip, and measure the reconstructions.

    Args:
        tokenizer: the tokenizer, on `device`.
        videos: (name, float [1,3,T,H,W] in [-1,1]), or (name, exception) for a clip that could not be read. Clips of
            different shapes may be mixed; neighbors of one shape share a batch.
        name, weight_hash: name and weight hash of the tokenizer, for the record.
        protocol: record of the clips, see `clip_protocol`.
        lpips: {name of the metric: its network, on `device`}; None, no LPIPS.
        fvd: network on `device`; None leaves rFVD out. With it, clips need at least 9 frames.
        batch_size: number of clips per batch. The metrics don't depend on it.

    Returns:
        The result described at the top of this file.

    Raises:
        ValueError: no clip could be evaluated (the first reason is given), or batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    start = time.perf_counter()
    lpips = lpips or {}
    run = _Run(tokenizer, lpips, fvd, device)
    for names, clips in _batches(videos, batch_size, run.fail):
        run.add(names, clips)
    if not run.rows:
        first = f"{run.failures[0]['name']}: {run.failures[0]['reason']}" if run.failures else "none was given"
        raise ValueError(f"no clip could be evaluated: {first}")
    metrics = run.metrics()
    return {
        "schema": SCHEMA,
        "tokenizer": {
            "name": name,
            "weight_hash": weight_hash,
            "stride": list(tokenizer.stride),
            "bits": tokenizer.bits,
        },
        "protocol": {**protocol, **_metric_notes(metrics, lpips)},
        "n_total": len(run.rows) + len(run.failures),
        "n_used": len(run.rows),
        "n_failed": len(run.failures),
        "failures": run.failures,
        "metrics": metrics,
        "codebook": run.usage.summary(),
        "clips": run.rows,
        "provenance": provenance(device),
        "wall_time_s": time.perf_counter() - start,
    }


def format_table(result: Mapping) -> str:
    """Format the result for a terminal: protocol, counts, metrics with standard errors, codebook usage."""
    tokenizer, protocol, codebook = result["tokenizer"], result["protocol"], result["codebook"]
    lines = [
        f"{tokenizer['name']}  ({protocol['source']}, {protocol['crop']}, fps {protocol['fps']})",
        f"{result['n_used']} of {result['n_total']} clips used, {result['n_failed']} failed",
        "",
    ]
    for metric, summary in result["metrics"].items():
        stderr = "" if summary["stderr"] is None else f" +- {summary['stderr']:.4f}"
        lines.append(f"{metric:<16}{summary['mean']:>10.4f}{stderr}")
    lines += [
        f"{'entropy':<16}{codebook['entropy_bits']:>10.4f} of {tokenizer['bits']:g} bits, {codebook['tokens']} tokens",
        f"{'codes used':<16}{codebook['distinct']:>10} of {codebook['size']} ({codebook['usage']:.2%})",
    ]
    lines += [f"failed: {failure['name']}: {failure['reason']}" for failure in result["failures"]]
    return "\n".join(lines)


class _Run:
    """Totals of one evaluation."""

    def __init__(self, tokenizer: Tokenizer, lpips: Mapping[str, LPIPS], fvd: I3D | None, device: str | torch.device):
        self.tokenizer, self.lpips, self.fvd, self.device = tokenizer, lpips, fvd, device
        self.usage = CodebookUsage(round(2**tokenizer.bits))
        self.real, self.fake = GaussianStatistics(I3D_FEATURES), GaussianStatistics(I3D_FEATURES)
        self.rows: list[dict] = []
        self.failures: list[dict] = []

    def fail(self, name: str, error: Exception) -> None:
        text = str(error)
        # A VideoError starts with the name, and its message is clearer than its type.
        named = text.startswith(f"{name}: ")
        reason = text.removeprefix(f"{name}: ") if named else f"{type(error).__name__}: {text}"
        self.failures.append({"name": name, "reason": reason})

    def add(self, names: list[str], clips: list[Tensor]) -> None:
        """Measure a batch. If it fails, retry clip by clip, so that only the failing clips are lost."""
        try:
            self._measure(names, clips)
        except (ValueError, RuntimeError, MemoryError) as error:  # RuntimeError: CUDA out of memory, for example
            if len(clips) == 1:
                self.fail(names[0], error)
            else:
                for name, clip in zip(names, clips, strict=True):
                    self.add([name], [clip])

    @torch.inference_mode()
    def _measure(self, names: list[str], clips: list[Tensor]) -> None:
        x_BCTHW = torch.cat(clips).to(self.device)
        if len(x_BCTHW) != len(names):
            raise ValueError(f"a clip is [1,3,T,H,W], got {[*clips[0].shape]}")
        ids = self.tokenizer.encode(x_BCTHW)
        y_BCTHW = self.tokenizer.decode(ids).float()
        columns = {
            "psnr": psnr(x_BCTHW, y_BCTHW),
            "block_mean_psnr": psnr(x_BCTHW, block_mean_baseline(x_BCTHW, self.tokenizer.stride)),
            "ssim": ssim(x_BCTHW, y_BCTHW),
        }
        columns["psnr_gain"] = columns["psnr"] - columns["block_mean_psnr"]
        if (edges := block_edges(x_BCTHW, y_BCTHW, self.tokenizer.stride)) is not None:
            columns["block_ratio"], columns["block_phases"] = edges
        columns |= {metric: network.for_video(x_BCTHW, y_BCTHW) for metric, network in self.lpips.items()}
        features = () if self.fvd is None else (self.fvd(x_BCTHW), self.fvd(y_BCTHW))
        rate = bits_per_pixel(self.tokenizer.bits, self.tokenizer.stride, *x_BCTHW.shape[2:])
        # Totals change only below this line, where a single clip of a batch can't fail.
        self.usage.update(ids)
        for statistics, features_ND in zip((self.real, self.fake), features, strict=False):
            statistics.update(features_ND)
        for index, name in enumerate(names):
            values = {metric: column[index].item() for metric, column in columns.items()}
            self.rows.append({"name": name, **values, "bits_per_pixel": rate})

    def metrics(self) -> dict:
        # Some rows lack metrics: clips of a single cell have no block edges.
        names = dict.fromkeys(metric for row in self.rows for metric in row if metric != "name")
        summaries = {metric: _summary([row[metric] for row in self.rows if metric in row]) for metric in names}
        if self.fvd is not None:
            summaries["rfvd"] = {"mean": frechet_distance(self.real, self.fake), "stderr": None, "n": self.real.n}
        return summaries


def _batches(
    videos: Iterable[Clip], batch_size: int, fail: Callable[[str, Exception], None]
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Yield neighboring clips of one shape, at most `batch_size` at a time; exceptions go to `fail`."""
    names: list[str] = []
    clips: list[Tensor] = []
    for name, clip in videos:
        if isinstance(clip, Exception):
            fail(name, clip)
            continue
        if clips and (len(clips) == batch_size or clip.shape != clips[0].shape):
            yield names, clips
            names, clips = [], []
        names.append(name)
        clips.append(clip)
    if clips:
        yield names, clips


def _summary(values: list[float]) -> dict:
    x = torch.tensor(values, dtype=torch.float64)
    stderr = x.std().item() / len(x) ** 0.5 if len(x) > 1 else None
    return {"mean": x.mean().item(), "stderr": stderr, "n": len(x)}


def _metric_notes(metrics: Mapping, lpips: Mapping[str, LPIPS]) -> dict:
    notes = {
        "psnr": "per clip: MSE over frames and RGB, peak 2 in [-1,1], not rounded to 8 bits, at most 100 dB; mean",
        "block_mean_psnr": "same, mean color of each cell of the token grid, first frame alone, bicubic up",
        "ssim": "Gaussian 11x11, sigma 1.5, data range 2 in [-1,1]; mean over RGB, frames, clips",
        "block_ratio": "per clip: mean gradient across cell borders over that elsewhere, relative to original; mean",
        "block_phases": "per clip: mean gradient at each phase of the stride relative to original, max over min; mean",
        **{metric: f"v0.1, {network.net}; mean over frames and clips" for metric, network in lpips.items()},
        "rfvd": "I3D Kinetics-400 logits, all frames of the clip, bilinear to 224x224, unbiased covariances",
    }
    return {metric: note for metric, note in notes.items() if metric in metrics}
