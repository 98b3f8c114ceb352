"""Reconstruction quality of a tokenizer on a list of clips, as one JSON-ready result.

Result schema "vidtok.eval.reconstruction/1":

    schema          that string
    tokenizer       name, weight_hash (or null), stride [s_t, s_h, s_w], bits
    protocol        source, split, frames, size, crop, fps (from `clip_protocol`) and one line on each metric
    n_total         clips offered = n_used + n_failed
    n_used, n_failed
    failures        [{name, reason}]: clips that could not be read or coded; nothing takes their place
    metrics         name -> {mean, stderr, n}; stderr is the standard error over clips, null for n = 1
                    psnr, trivial_psnr, psnr_gain (dB; paired difference of the two), ssim, bits_per_pixel;
                    block_ratio, block_phases (see `block_edges`) where the token grid has borders;
                    lpips where its network is given; rfvd ({mean: the distance, stderr: null, n}) likewise
    codebook        size, tokens, distinct, usage (distinct/size), entropy_bits, bit_balance [bits]
    clips           [{name, and each metric but rfvd}], in order
    provenance      git, versions, device, threads, date
    wall_time_s     seconds, reading included

Shape suffixes: B batch, C channels (RGB), T time, H height, W width.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from vidtok.lpips import LPIPS

from .clips import Clip
from .codebook import CodebookUsage, bits_per_pixel
from .fvd import GaussianStatistics, frechet_distance
from .i3d import I3D, I3D_FEATURES
from .metrics import block_edges, psnr, ssim
from .provenance import provenance
from .trivial import trivial_reconstruction

SCHEMA = "vidtok.eval.reconstruction/1"


class Tokenizer(Protocol):
    """What is asked of a tokenizer: ids int64 [B,t,h,w] from clips float [B,3,T,H,W] in [-1,1], and back."""

    stride: tuple[int, int, int]
    bits: float

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, ids: Tensor) -> Tensor: ...


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    videos: Iterable[Clip],
    *,
    name: str,
    protocol: Mapping,
    weight_hash: str | None = None,
    lpips: LPIPS | None = None,
    fvd: I3D | None = None,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
) -> dict:
    """Encode and decode every clip and measure what came back.

    Args:
        tokenizer: on `device`.
        videos: (name, float [1,3,T,H,W] in [-1,1]), or (name, exception) for a clip that could not be read. Clips of
            different shapes may be mixed; neighbours of one shape share a batch.
        name, weight_hash: of the tokenizer, for the record.
        protocol: where the clips come from, see `clip_protocol`.
        lpips, fvd: networks on `device`; None leaves the metric out. With `fvd`, clips need at least 9 frames.
        batch_size: clips at a time. The metrics do not depend on it.

    Returns:
        The result described at the top of this file.

    Raises:
        ValueError: no clip could be evaluated (the first reason is given), or batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    start = time.perf_counter()
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
    """The result as a few lines for a terminal: protocol, counts, metrics with standard errors, codebook use."""
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

    def __init__(self, tokenizer: Tokenizer, lpips: LPIPS | None, fvd: I3D | None, device: str | torch.device):
        self.tokenizer, self.lpips, self.fvd, self.device = tokenizer, lpips, fvd, device
        self.usage = CodebookUsage(round(2**tokenizer.bits))
        self.real, self.fake = GaussianStatistics(I3D_FEATURES), GaussianStatistics(I3D_FEATURES)
        self.rows: list[dict] = []
        self.failures: list[dict] = []

    def fail(self, name: str, error: Exception) -> None:
        text = str(error)
        # A VideoError begins with the name, and says what happened better than its type.
        named = text.startswith(f"{name}: ")
        reason = text.removeprefix(f"{name}: ") if named else f"{type(error).__name__}: {text}"
        self.failures.append({"name": name, "reason": reason})

    def add(self, names: list[str], clips: list[Tensor]) -> None:
        """Measure a batch; one that fails is tried again clip by clip, so that only the bad clips are lost."""
        try:
            self._measure(names, clips)
        except (ValueError, RuntimeError, MemoryError) as error:  # RuntimeError: CUDA out of memory, for one
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
            "trivial_psnr": psnr(x_BCTHW, trivial_reconstruction(x_BCTHW, self.tokenizer.stride)),
            "ssim": ssim(x_BCTHW, y_BCTHW),
        }
        columns["psnr_gain"] = columns["psnr"] - columns["trivial_psnr"]
        if (edges := block_edges(x_BCTHW, y_BCTHW, self.tokenizer.stride)) is not None:
            columns["block_ratio"], columns["block_phases"] = edges
        if self.lpips is not None:
            columns["lpips"] = self.lpips.for_video(x_BCTHW, y_BCTHW)
        features = () if self.fvd is None else (self.fvd(x_BCTHW), self.fvd(y_BCTHW))
        rate = bits_per_pixel(self.tokenizer.bits, self.tokenizer.stride, *x_BCTHW.shape[2:])
        # Nothing above touches a total, nothing below fails on one clip of a batch only.
        self.usage.update(ids)
        for statistics, features_ND in zip((self.real, self.fake), features, strict=False):
            statistics.update(features_ND)
        for index, name in enumerate(names):
            values = {metric: column[index].item() for metric, column in columns.items()}
            self.rows.append({"name": name, **values, "bits_per_pixel": rate})

    def metrics(self) -> dict:
        # Not every row has every metric: clips of one cell have no block edges.
        names = dict.fromkeys(metric for row in self.rows for metric in row if metric != "name")
        summaries = {metric: _summary([row[metric] for row in self.rows if metric in row]) for metric in names}
        if self.fvd is not None:
            summaries["rfvd"] = {"mean": frechet_distance(self.real, self.fake), "stderr": None, "n": self.real.n}
        return summaries


def _batches(
    videos: Iterable[Clip], batch_size: int, fail: Callable[[str, Exception], None]
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Neighbouring clips of one shape, at most `batch_size` at a time; exceptions go to `fail`."""
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


def _metric_notes(metrics: Mapping, lpips: LPIPS | None) -> dict:
    notes = {
        "psnr": "per clip: MSE over frames and RGB, peak 2 in [-1,1], not rounded to 8 bits, at most 100 dB; mean",
        "trivial_psnr": "same, mean colour of each cell of the token grid, first frame alone, bicubic up",
        "ssim": "Gaussian 11x11, sigma 1.5, data range 2 in [-1,1]; mean over RGB, frames, clips",
        "block_ratio": "per clip: mean gradient across cell borders over that elsewhere, relative to original; mean",
        "block_phases": "per clip: mean gradient at each phase of the stride relative to original, max over min; mean",
        "lpips": f"v0.1, {lpips.net if lpips else ''}; mean over frames and clips",
        "rfvd": "I3D Kinetics-400 logits, all frames of the clip, bilinear to 224x224, unbiased covariances",
    }
    return {metric: note for metric, note in notes.items() if metric in metrics}
