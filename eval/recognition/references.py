"""Features for probes, from a tokenizer or from frozen networks that were trained with labels, and their pooling.

Legend: N clips, V views, C channels, t h w grid, F features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from vidtok.errors import nearest
from vidtok.eval.metrics.i3d import I3D, fast_i3d
from vidtok.eval.recognition.clips import ClipSource, Protocol
from vidtok.eval.recognition.features import FeatureFiles
from vidtok.eval.recognition.inputs import INPUTS, InputEncoder, shuffle_frames, trained_on, views_of_dataset
from vidtok.heads import Head
from vidtok.heads.transformer import VideoTransformer
from vidtok.hub import hash_weights
from vidtok.quantize.lfq import ids_to_signs
from vidtok.tokenizer import VideoTokenizer, check_precision

REFERENCES = {"i3d", "frames"}  # inputs that don't come from a tokenizer
BACKBONE = "tf_efficientnet_lite0"  # default model of timm

# Pool -> largest (number of parts in time, number of rows and columns in space) after averaging; None, no averaging.
TIMES = 4
POOLS: dict[str, tuple[int, int] | None] = {
    "mean": (1, 1), "time": (TIMES, 1), "grid2": (TIMES, 2), "grid4": (TIMES, 4), "all": None,
}  # fmt: skip
Row = tuple[str, str]  # (input, pool) of a classifier


def pool_features(x_NVCthw: Tensor, pool: str = "grid4") -> np.ndarray:
    """Pool features of clips to vectors.

    Args:
        x_NVCthw: [N,V,C,t,h,w], or features that are pooled already, [N,V,C], which are returned unchanged.
        pool: regions that are averaged, with t' = min(t, 4) and g = 2 or 4:

            - "mean": all times and positions, F = C.
            - "time": all positions, for each of t' parts of the clip, F = C t'.
            - "grid2", "grid4": the cells of a g x g grid in space, for each of t' parts of the clip,
              F = C t' min(h, g) min(w, g).
            - "all": no averaging, F = C t h w.

            Parts and cells are those of adaptive average pooling: of equal size if the size is a multiple of their
            number; otherwise neighbors overlap by one.

    Returns:
        float32 [N,V,F].

    Raises:
        ValueError: the name is not in `POOLS`.
    """
    check_pool(pool)
    x = x_NVCthw.float()
    if x.ndim > 3 and (parts := POOLS[pool]) is not None:
        (times, places), (t, h, w) = parts, x.shape[3:]
        size = min(times, t), min(places, h), min(places, w)
        x = F.adaptive_avg_pool3d(x.flatten(0, 1), size).unflatten(0, x.shape[:2])
    return x.flatten(2).numpy()


def check_pool(name: str) -> None:
    """Raise ValueError for a name that is not in `POOLS`."""
    if name not in POOLS:
        raise ValueError(f"unknown pool {name!r}: {nearest(name, POOLS)}")


class FrameBackbone(nn.Module):
    """Image classifier of timm as a feature extractor for single frames.

    Args:
        name: name of the timm model, with or without the tag of its weights ("vit_small_patch14_dinov2.lvd142m").
        weights: file of its weights (safetensors or torch); None, timm downloads them.
        pretrained: whether to load weights; False is for tests.

    Raises:
        ValueError: a name that timm doesn't know, or weights of another network.
        FileNotFoundError: there is no such file, or timm can't download the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | Path | None = None, pretrained: bool = True):
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
        overlay = None
        if weights is not None:
            if not Path(weights).is_file():
                raise FileNotFoundError(f"no weights at {weights}")
            overlay = {"file": str(weights)}
        try:
            # Built with the classifier, because without it timm would accept any file of weights.
            network: Any = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
        except OSError as error:
            message = f"timm can't download the weights of {name}: give a file of them ({error})"
            raise FileNotFoundError(message) from error
        network.reset_classifier(0)
        data = resolve_model_data_config(network)
        self.network, self.size = network.eval().requires_grad_(False), tuple(data["input_size"][1:])
        self.weight_hash = hash_weights(network)
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, video_B3THW: Tensor) -> Tensor:
        """Encode float [B,3,T,H,W] in [-1,1] to float32 [B,C,T,1,1]. Frames are resized to the model's input size."""
        B = len(video_B3THW)
        frames = video_B3THW.float().transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, self.size, mode="bicubic", antialias=True).clamp(-1, 1)
        features_NC = self.network((frames / 2 + 0.5 - self.mean) / self.std)
        return features_NC.unflatten(0, (B, -1)).transpose(1, 2)[..., None, None]


class ReferenceEncoder:
    """Encoder of clips by a frozen network, with the interface of `InputEncoder`; for that of a head, see the subclass.

    network: an `I3D`, for its features before the last pool, float32 [B,1024,t,7,7], or a `FrameBackbone`. tokenizer:
    if given, the network sees its reconstructions. precision: "fp32" or "bf16", in which I3D is faster on a CPU that
    has it. per_frame: whether each frame is encoded independently.

    Raises:
        ValueError: an unknown precision.
    """

    precision = "fp32"

    def __init__(self, network: I3D | FrameBackbone, tokenizer: VideoTokenizer | None = None, precision: str = "fp32"):
        check_precision(precision)
        self.network: I3D | FrameBackbone | VideoTransformer = network
        self.precision = precision
        self.tokenizer = tokenizer
        self.kind = "i3d" if isinstance(network, I3D) else "frames"
        self.per_frame = self.kind == "frames" and tokenizer is None
        self.features: Callable[[Tensor], Tensor] = network.forward_grid if isinstance(network, I3D) else network
        self.prepare = InputEncoder("pixels" if tokenizer is None else "recon", tokenizer)

    def __call__(self, video_B3THW: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        x = self.prepare(video_B3THW).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.features(x).float()


class I3DTeacher(nn.Module):
    """I3D as a model of `vidtok extract`, for features that a backbone learns to predict.

        vidtok extract videos/ -o i3d --features hidden --clips dense:4 --frames 17 --size 64 --crop center \\
          --model "vidtok.eval.recognition.references:I3DTeacher?weights=i3d_k400.safetensors"

    See `vidtok.custom` for the interface. Clips have 9 to 61 frames. The only id is 0. Features are those of Mixed_4f
    and Mixed_5c one after the other, float32 [B, 832 + 1024, t, h, w], resampled to the grid. The network runs in bf16.

    Args:
        weights: see `I3D`.
        side: pixels per cell of the grid in height and width.
    """

    vocab_size, causal = 2, True

    def __init__(self, weights: str, side: int = 16):
        super().__init__()
        self.network, self.stride = fast_i3d(weights), (4, side, side)

    def encode(self, video: Tensor) -> Tensor:
        B, _, T, H, W = video.shape
        s_t, s_h, s_w = self.stride
        return torch.zeros(B, 1 + (T - 1) // s_t, H // s_h, W // s_w, dtype=torch.int64)

    def features(self, video: Tensor, kind: str) -> Tensor:
        t, h, w = self.encode(video).shape[1:]
        with torch.autocast(video.device.type, torch.bfloat16):
            found = self.network.forward_grids(video)
        cells = [F.adaptive_avg_pool3d(x.float(), (x.shape[2], h, w)) for x in found]
        return torch.cat([F.interpolate(x, (t, h, w), mode="trilinear") for x in cells], 1)


class BackboneEncoder(ReferenceEncoder):
    """Encoder of clips by the video transformer of a head: normalized features of its cells, float32 [B,D,t,h,w].

    Clips may be longer and larger than those of its training, see `vidtok.heads.transformer.Position`.

    Args:
        head: the head; its last layer isn't used.
        tokenizer: makes the head's input.

    Raises:
        ValueError: the head is of another kind or tokenizer, or reads something else than clips.
    """

    def __init__(self, head: Head, tokenizer: VideoTokenizer):
        reads = trained_on(head.config)
        if reads not in INPUTS:
            raise ValueError(f"head {head.config.name!r} reads {reads}, and no tokenizer makes that")
        head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash, tokenizer.encoder.feature_layer)
        head.validate_uncropped()
        transformer = VideoTransformer.validate(head)

        @torch.no_grad()
        def features(x: Tensor) -> Tensor:
            return transformer.norm(transformer.encode_cells(transformer.embed(x))).movedim(-1, 1)

        self.network, self.tokenizer, self.features = transformer, None, features
        self.kind, self.per_frame = "cells", False
        self.prepare = InputEncoder(reads, tokenizer)


def make_encoder(
    input: str,
    tokenizer: VideoTokenizer,
    i3d: str | None,
    backbone: str | None,
    weights: str | None,
    recon: bool,
    head: str | None = None,
    precision: str = "fp32",
) -> InputEncoder | ReferenceEncoder:
    """Build the encoder of an input.

    Args:
        input: name of the input, see `probe`.
        tokenizer: tokenizer of the features and reconstructions.
        i3d: file or URL of I3D's weights, for "i3d".
        backbone, weights: model of timm and file of its weights, for "frames".
        recon: whether i3d and frames see reconstructions.
        head: name of the head whose transformer makes "cells".
        precision: of I3D and frames, see `ReferenceEncoder`.

    Raises:
        ValueError: an unknown name or precision, a reference without its network, or a head of another tokenizer or
            kind.
    """
    if input == "cells":
        if head is None:
            raise ValueError("input cells needs head: a pretrained backbone")
        return BackboneEncoder(Head.from_pretrained(head, tokenizer.device), tokenizer)
    if input not in REFERENCES:
        return InputEncoder(input, tokenizer)
    network: I3D | FrameBackbone
    if input == "frames":
        if backbone is None and weights is None:
            raise ValueError("input frames needs a backbone: the name of timm's image classifier")
        network = FrameBackbone(backbone or BACKBONE, weights)
    else:
        if i3d is None:
            raise ValueError("input i3d needs i3d: the file of its weights")
        network = fast_i3d(i3d)
    return ReferenceEncoder(network.to(tokenizer.device), tokenizer if recon else None, precision)


def build_teacher(name: str, weights: str | None) -> ReferenceEncoder:
    """Build a frozen teacher.

    Args:
        name: "i3d", or an image classifier of timm, which sees single frames.
        weights: file of its weights; None, timm downloads its own.

    Raises:
        ValueError: an unknown name, weights of another network, or none for I3D.
        FileNotFoundError: no such file, or the download failed.
    """
    if name != "i3d":
        return ReferenceEncoder(FrameBackbone(name, weights))
    if weights is None:
        raise ValueError("the teacher i3d needs teacher_weights: the file of its weights")
    return ReferenceEncoder(I3D(weights))


@dataclass
class ProbeClips:
    """Pooled features of labeled clips.

    Attributes:
        features: (input, pool) -> float32 [N,V,F].
        labels: int [N]. ids: N names.
        shuffled: the same for the clips with their frames in random order; may be empty.
        groups: group of each clip; None, no groups.
        failures: [{name, reason}] of clips that could not be read.
    """

    features: dict[Row, np.ndarray]
    labels: np.ndarray
    ids: list[str]
    shuffled: dict[Row, np.ndarray] = field(default_factory=dict)
    groups: list[str] | None = None
    failures: list[dict] = field(default_factory=list)


def features_of_clips(
    source: ClipSource,
    split: str | None,
    protocol: Protocol,
    encoders: Mapping[str, InputEncoder | ReferenceEncoder],
    rows: Sequence[Row],
    limit: int | None = None,
    workers: int = 0,
    shuffle: bool = False,
) -> tuple[ProbeClips, list[str]]:
    """Compute the features of videos; return (features, class names).

    Videos are decoded one at a time and once for all inputs, and only their features are kept.

    Args:
        source, split, protocol: the videos, and how clips are taken from them.
        encoders: input -> its encoder. rows: (input, pool) of the features.
        limit: largest number of videos; None, all. workers: number of decoding processes.
        shuffle: whether to compute features of shuffled frames, too.

    Raises:
        ValueError: no video can be read.
    """
    dataset = source.open(split, protocol)
    dataset.keep(slice(limit))
    found: list[dict[Row, list[np.ndarray]]] = [{row: [] for row in rows} for _ in range(1 + shuffle)]
    labels, ids, failures = [], [], []
    for batch in views_of_dataset(dataset, 1, workers):
        failures += batch.failures
        if not batch.ids:
            continue
        labels += batch.labels.tolist()
        ids += batch.ids
        for input, encoder in encoders.items():
            encoded = [encoder(batch.x[0])[None].cpu()]
            if shuffle and encoder.per_frame:  # shuffle the features instead of encoding shuffled frames
                encoded.append(shuffle_frames(encoded[0], batch.ids))
            elif shuffle:
                encoded.append(encoder(shuffle_frames(batch.x, batch.ids)[0])[None].cpu())
            for x, features in zip(encoded, found, strict=True):
                numbers = _numbers(x, encoder.kind, encoder.tokenizer)
                for row in rows:
                    if row[0] == input:
                        features[row].append(pool_features(numbers, row[1]))
    if not ids:
        raise ValueError(f"no clip could be read: {failures[0]['name']}: {failures[0]['reason']}")
    whole = [{row: np.concatenate(parts) for row, parts in features.items()} for features in found]
    clips = ProbeClips(whole[0], np.array(labels), ids, whole[1] if shuffle else {}, None, failures)
    return clips, dataset.classes


def features_of_files(files: FeatureFiles, input: str, tokenizer: VideoTokenizer, pools: Sequence[str]) -> ProbeClips:
    """Read features from files and pool them.

    Raises:
        ValueError: the videos have different numbers of views.
    """
    counts = {len(rows) for rows in files.records}
    if len(counts) > 1:
        raise ValueError(f"videos of {min(counts)} to {max(counts)} records: extract the same number of clips of each")
    found: dict[Row, list[np.ndarray]] = {(input, pool): [] for pool in pools}
    for index in range(len(files)):
        x = _numbers(files.all_views(index)[None], input, tokenizer)
        for row, parts in found.items():
            parts.append(pool_features(x, row[1]))
    whole = {row: np.concatenate(parts) for row, parts in found.items()}
    return ProbeClips(whole, np.array(files.labels), files.ids, failures=files.failures)


def read_features(
    paths: tuple[str, str],
    splits: tuple[str, str],
    limits: tuple[int | None, int | None],
    inputs: Sequence[str],
    tokenizer: VideoTokenizer,
    protocol: Protocol,
    pools: Sequence[str],
    groups_of: Callable[[Sequence[str]], list[str] | None] | None = None,
) -> tuple[ProbeClips, ProbeClips, list[str]]:
    """Read features from files of `vidtok extract`, without shuffled frames; return (training, test, classes).

    paths, splits, limits: values for (training, test). groups_of: maps ids to groups; None, groups from the files.
    """
    both: list[ProbeClips] = []
    for input in inputs:
        train = FeatureFiles(paths[0], splits[0], input, tokenizer, protocol)
        test = FeatureFiles(paths[1], splits[1], input, tokenizer, protocol, train.classes)
        train.validate_disjoint(test)
        test.validate_views(protocol)
        found = []
        for files, limit in zip((train, test), limits, strict=True):
            files.first(limit)
            found.append(features_of_files(files, input, tokenizer, pools))
            found[-1].groups = files.groups if groups_of is None else groups_of(files.ids)
        for kept, new in zip(both, found, strict=False):
            new.features |= kept.features
        both = found
    return both[0], both[1], train.classes


def concatenate(train: ProbeClips, test: ProbeClips) -> ProbeClips:
    """Concatenate training and test clips, in this order. Test clips without groups get the group "".

    `shuffled` has only the test clips if the training clips have none.
    """
    features = {row: np.concatenate([x, test.features[row]]) for row, x in train.features.items()}
    shuffled = {
        row: np.concatenate([train.shuffled[row], x]) if train.shuffled else x for row, x in test.shuffled.items()
    }
    groups = None if train.groups is None else train.groups + (test.groups or [""] * len(test.ids))
    labels = np.concatenate([train.labels, test.labels])
    return ProbeClips(features, labels, train.ids + test.ids, shuffled, groups, train.failures + test.failures)


def _numbers(x_NV: Tensor, input: str, tokenizer: VideoTokenizer | None) -> Tensor:
    """Convert inputs to floats [N,V,C,...]; ids [N,V,t,h,w] become their bits as -1 and +1."""
    if tokenizer is None or input not in ("tokens", "codes"):
        return x_NV
    return ids_to_signs(x_NV.long(), math.ceil(tokenizer.bits)).movedim(-1, 2)
