"""Inputs of a recognition head, and its predictions.

Clips are encoded as tokens, codes, latents, hidden features, pixels or reconstructions. They are encoded batch by
batch, or once to be kept in memory. Predictions are averaged over the views of a video.

Legend: B batch, V views of one video, N videos, C channels, T H W video, t h w token grid, K classes.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vidtok.checks import free_memory
from vidtok.datasets import LabeledDataset
from vidtok.datasets.synthetic.motion import TASKS
from vidtok.errors import nearest
from vidtok.heads import HeadConfig
from vidtok.names import escape_name
from vidtok.tokenizer import VideoTokenizer

# Name of each input -> its description.
INPUTS = {
    "tokens": "ids, whose bits a small network maps to vectors",
    "codes": "the ids' bits as signs, without this network",
    "latents": "what is quantized, before it is",
    "hidden": "the encoder's features",
    "pixels": "the clip itself",
    "recon": "pixels of the decoded tokens",
    "frame": "the clip's middle frame alone, a control that sees no motion",
}
ORIGINAL = ("pixels", "frame")  # what no tokenizer has changed


def trained_on(config: HeadConfig) -> str:
    """Return the input that a head was trained on: a key of `INPUTS`, or "embedding".

    Pixels of a head that names a tokenizer are reconstructions.
    """
    kind = config.input["kind"]
    if kind != "pixels":
        return kind
    if (config.protocol or {}).get("middle_frame"):
        return "frame"
    return "pixels" if config.tokenizer is None else "recon"


PIXELS_AT_ONCE, ON_CPU = 1 << 23, 1 << 20  # largest batches: 120 and 15 clips of 17 x 64 x 64


class InputEncoder:
    """Encoder of clips, float [B,3,T,H,W] in [-1,1] or uint8, to a head's input. It has no trained parameters.

    Clips and reconstructions are rounded to 8 bits and features to float16, so that cached inputs are equal to inputs
    that are computed on the fly.

    Args:
        kind: one of `INPUTS`. "tokens" and "codes" give int64 ids [B,t,h,w], "latents" and "hidden" float32
            [B,C,t,h,w], "pixels" and "recon" float32 [B,3,T,H,W], "frame" [B,3,1,H,W].
        tokenizer: the tokenizer, which pixels and frame don't need. The result is on its device.
        concat_segments: number J of clips that the head sees at once. With J > 1, clips are [B,J,3,T,H,W]. Each is
            encoded alone, and features are concatenated in time, with J*t in place of t.
        grid_crop: side of the center crop of the grid in cells, for heads that were trained on crops; None, the whole
            grid.
        pixels_per_cell: side of a cell in pixels for crops of pixels; None, the tokenizer's stride.

    Attributes:
        head_input: kind of input that the head is built for.
        unit: side of a grid cell in the last two dimensions of the head's input, in values.
        per_frame: whether each frame is encoded independently.

    Raises:
        ValueError: an unknown kind, a missing tokenizer, or pixels of several clips at once.
    """

    def __init__(
        self, kind: str, tokenizer: VideoTokenizer | None = None, concat_segments: int = 1,
        grid_crop: int | None = None, pixels_per_cell: int | None = None,
    ):  # fmt: skip
        if kind not in INPUTS:
            raise ValueError(f"unknown input {kind!r}: {nearest(kind, INPUTS)}")
        if tokenizer is None and kind not in ORIGINAL:
            raise ValueError(f"input {kind!r} comes from a tokenizer: give one")
        if tokenizer is not None and (why := tokenizer.lacks.get(kind)):
            raise ValueError(f"no input {kind!r}: {why}")
        self.kind, self.tokenizer = kind, tokenizer
        self.device = torch.device("cpu") if tokenizer is None else tokenizer.device
        self.concat_segments, self.grid_crop = concat_segments, grid_crop
        self.head_input, self.per_frame = "pixels" if kind in ("recon", *ORIGINAL) else kind, kind == "pixels"
        pixels_per_cell = pixels_per_cell or (tokenizer.stride[-1] if tokenizer else 1)
        self.unit = pixels_per_cell if self.head_input == "pixels" else 1
        if concat_segments > 1 and self.head_input == "pixels":
            raise ValueError(f"clips can be concatenated as tokens, codes, latents or hidden features, not as {kind}")

    def __call__(self, video: Tensor) -> Tensor:
        if self.concat_segments == 1:
            return self.cropped(unpack(self.encode_compact(video)))
        x = unpack(self.encode_compact(video.flatten(0, 1))).unflatten(0, (-1, self.concat_segments))
        time = 1 if x.ndim == 5 else 2  # time axis of a clip of ids [B,J,t,h,w] and of features [B,J,C,t,h,w]
        return self.cropped(x.movedim(1, time).flatten(time, time + 1))

    def cropped(self, x: Tensor) -> Tensor:
        """Crop a whole grid to the part that the head sees."""
        return center_crop_grid(x, self.grid_crop, self.unit)

    @torch.no_grad()
    def encode_compact(self, video_B3THW: Tensor) -> Tensor:
        """Encode single clips in the form that is kept in memory: pixels uint8, features float16, ids int64."""
        video = video_B3THW if video_B3THW.dtype == torch.uint8 else to_bytes(video_B3THW)
        if self.kind == "frame":
            middle = video.shape[2] // 2
            return video[:, :, middle : middle + 1]
        if self.kind == "pixels" or self.tokenizer is None:  # all other kinds have one
            return video
        x = to_float(video.to(self.device))
        if self.kind == "latents":
            return self.tokenizer.encode_latents(x).half()
        if self.kind == "hidden":
            return self.tokenizer.forward_features(x).half()
        ids = self.tokenizer.encode(x)
        return ids if self.kind in ("tokens", "codes") else self.decode_compact(ids)

    @torch.no_grad()
    def decode_compact(self, ids_Bthw: Tensor) -> Tensor:
        """Decode tokens to reconstructions, uint8 [B,3,T,H,W]."""
        assert self.tokenizer is not None
        return to_bytes(self.tokenizer.decode(ids_Bthw))


def encode_all(encoder: InputEncoder, video_NV3THW: Tensor, ids_NVthw: Tensor | None = None) -> Tensor:
    """Encode uint8 clips to be kept in memory; return x [N,V,...] in compact form, see `unpack`. ids_NVthw: the clips'
    tokens if they are known; reconstructions are decoded from them."""
    assert encoder.concat_segments == 1, "concatenated clips are drawn anew in every epoch"
    if encoder.kind in ORIGINAL or encoder.tokenizer is None:  # all other kinds have one
        return encoder.encode_compact(video_NV3THW.flatten(0, 1)).unflatten(0, video_NV3THW.shape[:2])
    at_once = max(1, _pixels_at_once(encoder.tokenizer, encoder.device) // video_NV3THW[0, 0, 0].numel())
    encode: Callable[[Tensor], Tensor]
    if encoder.kind == "recon" and ids_NVthw is not None:
        clips, encode = ids_NVthw, encoder.decode_compact
    else:
        clips, encode = video_NV3THW, encoder.encode_compact
    parts = [encode(part).cpu() for part in clips.flatten(0, 1).split(at_once)]
    return torch.cat(parts).unflatten(0, video_NV3THW.shape[:2])


def _pixels_at_once(tokenizer: VideoTokenizer, device: torch.device) -> int:
    if device.type == "cpu":
        return ON_CPU
    values = max(net.activation_elems_per_pixel for net in (tokenizer.encoder, tokenizer.decoder))
    return min(PIXELS_AT_ONCE, free_memory(device) // (4 * values * tokenizer.dtype.itemsize))


def unpack(x: Tensor) -> Tensor:
    """Convert the output of `InputEncoder.encode_compact` to a head's input."""
    return to_float(x) if x.dtype == torch.uint8 else x.float() if x.is_floating_point() else x


def crop_grid(x: Tensor, top: int, left: int, side: int, unit: int) -> Tensor:
    """Crop `side` x `side` cells of the grid at the cell (top, left), where a cell is `unit` x `unit` values."""
    top, left, side = top * unit, left * unit, side * unit
    return x[..., top : top + side, left : left + side]


def center_crop_grid(x: Tensor, side: int | None, unit: int) -> Tensor:
    """Crop the center of the grid, for tests of heads that were trained on crops; side None returns the whole grid."""
    if side is None:
        return x
    top, left = ((size // unit - side) // 2 for size in x.shape[-2:])
    return crop_grid(x, top, left, side, unit)


def to_float(video: Tensor) -> Tensor:
    """Convert uint8 to float32 in [-1,1]; return floats unchanged."""
    return video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video


def group_segments(video_BV3THW: Tensor, concat_segments: int) -> Tensor:
    """Group the V = segments x crops views of B videos for `InputEncoder`: [B,V,3,T,H,W], or for
    concat_segments = segments > 1, [B,crops,segments,3,T,H,W]."""
    return video_BV3THW if concat_segments == 1 else video_BV3THW.unflatten(1, (concat_segments, -1)).transpose(1, 2)


def to_bytes(video: Tensor) -> Tensor:
    """Convert float in [-1,1] to uint8, rounded to nearest: the inverse of `to_float`."""
    return video.add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def shuffle_frames(video_NVCTHW: Tensor, ids: Sequence[str]) -> Tensor:
    """Shuffle the frames of each video into a random order other than the true one. The seed is derived from the id of
    the video, so that the order is the same in every batch and for all views."""
    T = video_NVCTHW.shape[3]
    shuffled = []
    for video_VCTHW, name in zip(video_NVCTHW, ids, strict=True):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        order = np.arange(T)
        while T > 1 and (order == np.arange(T)).all():
            order = rng.permutation(T)
        shuffled.append(video_VCTHW[:, :, torch.from_numpy(order)])
    return torch.stack(shuffled)


@dataclass
class ClipSet:
    """Labeled clips in memory.

    Attributes:
        video: uint8 [N,V,3,T,H,W] with V views, or their encoding, [N,V,...].
        labels: int [N]. ids: N names. classes: class names.
        paths: paths of the video files, "" for rendered clips.
        failures: [{name, reason}] of videos that could not be read.
    """

    video: Tensor
    labels: np.ndarray
    ids: list[str]
    classes: list[str]
    failures: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ClipSet":
        """Return a set of some of the clips, without failures."""
        chosen = [int(i) for i in indices]
        ids, paths = ([x[i] for i in chosen] for x in (self.ids, self.paths))
        return ClipSet(self.video[chosen], self.labels[chosen], ids, self.classes, [], paths)


class Views(NamedTuple):
    """Test batch: x [B,V,...], labels int64 [B], ids, and failures [{name, reason}] of videos that can't be read."""

    x: Tensor
    labels: Tensor
    ids: list[str]
    failures: list[dict]


@dataclass
class Predictions:
    """Predictions of a head for N videos.

    Attributes:
        probabilities: float64 [N,K]. labels: int [N]. ids: N names. correct_N: bool [N], whether top-1 is the label.
        failures: [{name, reason}] of videos that could not be read.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    ids: list[str]
    failures: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.correct_N: np.ndarray = self.probabilities.argmax(1) == self.labels


def views_of_dataset(
    dataset: LabeledDataset, batch_size: int, workers: int = 0, shuffle: bool = False, concat_segments: int = 1
) -> Iterator[Views]:
    """Yield batches of the videos of a dataset; failed videos (on_error="return") are listed and not replaced.

    shuffle: shuffle frames, see `shuffle_frames`. concat_segments: number of clips that the head sees at once, see
    `group_segments`.
    """
    for batch in dataset.loader(batch_size, workers):
        failures = [{"name": escape_name(str(error.path)), "reason": error.reason} for error in batch.failed]
        x = shuffle_frames(batch.video, batch.id) if shuffle and batch.id else batch.video
        yield Views(group_segments(x, concat_segments) if batch.id else x, batch.label, batch.id, failures)


def views_in_memory(x_NV: Tensor, labels: np.ndarray, ids: list[str], batch_size: int) -> Iterator[Views]:
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        yield Views(x_NV[part], torch.from_numpy(labels[part]), ids[part], [])


def same_task(classes: Sequence[str] | None) -> Tensor | None:
    """Return bool [K,K], whether two classes belong to the same motion task; None unless there are several tasks."""
    split = [name.partition("/") for name in classes or ()]
    if len({task for task, *_ in split}) < 2 or any(kind not in TASKS.get(task, ()) for task, _, kind in split):
        return None
    tasks = np.array([task for task, *_ in split])
    return torch.from_numpy(tasks[:, None] == tasks)


@torch.no_grad()
def predict(head: nn.Module, batches: Iterable[Views], encode: Callable[[Tensor], Tensor] | None = None) -> Predictions:
    """Predict class probabilities: the softmax of the head's logits, averaged over the views of each video.

    The result doesn't depend on the division into batches, up to rounding in float32.

    Args:
        head: a head in evaluation mode. If its classes belong to several motion tasks, only those of the clip's task
            are candidates.
        batches: the test clips.
        encode: maps videos to the head's input, see `InputEncoder`; None, they are the input.

    Raises:
        ValueError: no video could be read.
        FloatingPointError: logits are not finite.
    """
    device = next(head.parameters()).device
    asked = same_task(getattr(getattr(head, "config", None), "classes", None))
    rows, labels, ids, failures = [], [], [], []
    for batch in batches:
        failures += batch.failures
        if not batch.ids:
            continue
        x = batch.x.flatten(0, 1).to(device)
        logits = head(x if encode is None else encode(x)).double()
        if not logits.isfinite().all():
            raise FloatingPointError(f"the head's logits are not finite, first for {batch.ids[0]}")
        if asked is not None:
            own = asked[batch.labels].repeat_interleave(batch.x.shape[1], 0)
            logits = logits.masked_fill(~own.to(device), -torch.inf)
        rows.append(logits.softmax(1).unflatten(0, batch.x.shape[:2]).mean(1).cpu().numpy())
        labels += batch.labels.tolist()
        ids += batch.ids
    if not ids:
        reason = f"{failures[0]['name']}: {failures[0]['reason']}" if failures else "the split is empty"
        raise ValueError(f"no video could be classified: {reason}")
    return Predictions(np.concatenate(rows), np.array(labels), ids, failures)


Test = Callable[[nn.Module], Predictions]


def memory_test(x_NV: Tensor, clips: ClipSet, grid_crop: int | None, unit: int, batch_size: int) -> Test:
    """Return a test on encoded clips, x [N,V,...]; clips that could not be read count as failures."""

    def test(head: nn.Module) -> Predictions:
        views = views_in_memory(center_crop_grid(x_NV, grid_crop, unit), clips.labels, clips.ids, batch_size)
        found = predict(head, views, unpack)
        found.failures += clips.failures
        return found

    return test
