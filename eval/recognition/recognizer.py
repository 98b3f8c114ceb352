"""Recognize what videos show with a trained head.

Legend: V views of one video, T H W video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.datasets import LabeledVideos, VideoError
from vidtok.errors import is_expected, one_line
from vidtok.eval.recognition.inputs import group_segments
from vidtok.extraction import read_npz
from vidtok.inputs import find_files
from vidtok.names import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Recognition:
    """What one video shows.

    Attributes:
        path: of the video, or None for a tensor.
        labels: (label, probability), the most probable first.
        views: number of clips and crops over which the probabilities are averaged.
        error: why the file can't be recognized, or None; there are no labels then.
    """

    path: Path | None
    labels: list[tuple[str, float]] = field(default_factory=list)
    views: int = 0
    error: str | None = None


class Recognizer:
    """Tell what videos show, by a trained head and the tokenizer that its input comes from.

        recognizer = vidtok.Recognizer("digits-tokens")
        for found in recognizer(["clip.mp4", "videos/"]):
            print(found.path, found.labels[0])

    Args:
        head: shipped name, folder or hub id.
        model: tokenizer; None, by the name recorded with the head.
        device: "auto", "cpu", "cuda", "cuda:1", ... precision: of the tokenizer, "fp32" or "bf16".

    Attributes:
        head: the `Head`. protocol: how it sees a video, a `Protocol`. encoder: what stands between the two, an
            `InputEncoder`.

    Raises:
        ValueError: for a head that isn't there or doesn't say what it was trained on, and for another tokenizer.
    """

    def __init__(self, head: str, model: str | None = None, device: str = "auto", precision: str = "fp32"):
        self.head, self.encoder, self.protocol = load_head(head, model, device, precision=precision)

    def __call__(
        self, inputs: str | Path | Tensor | Sequence[str | Path | Tensor], top: int = 5
    ) -> Iterator[Recognition]:
        """Recognize one video after the other.

        Args:
            inputs: files in any video format or in .npz, folders of them, glob patterns; or the views of one video,
                float [V, 3, T, H, W] (or [3, T, H, W]) in [-1, 1], of the frames and size in `protocol`. One or several
                of these. Files are cut and resized as the head was trained.
            top: labels of each.

        Returns:
            One `Recognition` for each video. A file that fails has an `error`, and the others follow.

        Raises:
            UserError: for a path that doesn't exist or a pattern that matches nothing.
            ValueError: for a tensor of another shape.
        """
        several = [inputs] if isinstance(inputs, str | Path | Tensor) else list(inputs)
        planned = [x if isinstance(x, Tensor) else find_files([str(x)], (*VIDEO_SUFFIXES, ".npz")) for x in several]
        items = [x for part in planned for x in ([part] if isinstance(part, Tensor) else [file for file, _ in part])]
        return (self._recognize(x, top) for x in dict.fromkeys(items))  # no file twice

    def _recognize(self, x: Path | Tensor, top: int) -> Recognition:
        if isinstance(x, Tensor):
            views_V3THW = x if x.ndim == 5 else x[None]
            return Recognition(None, self.top(self.video(views_V3THW), top), len(views_V3THW))
        try:
            probabilities, views = self.file(x)
        except Exception as error:
            if not is_expected(error):
                raise
            return Recognition(x, error=one_line(error))
        return Recognition(x, self.top(probabilities, top), views)

    def file(self, path: Path) -> tuple[Tensor, int]:
        """(probabilities [classes], number of views they are averaged over) of a video or a token file."""
        if path.suffix.lower() == ".npz":
            x = self._tokens(path)
            return self._average(x), len(x)
        videos = LabeledVideos(
            [str(path)], [path.name], [-1], [], sampler=self.protocol.sampler(), transform=self.protocol.transform()
        )
        sample = videos[0]
        if isinstance(sample, VideoError):
            raise sample
        return self.video(sample.video), self.protocol.views

    def video(self, video_V3THW: Tensor) -> Tensor:
        """Probabilities [classes] of the views of one video, float [V, 3, T, H, W] in [-1, 1]."""
        views = group_segments(video_V3THW[None], self.encoder.concat_segments)[0]
        return self._average(self.encoder(views.to(self.head.device)))

    def top(self, probabilities: Tensor, count: int) -> list[tuple[str, float]]:
        """(label, probability) of the most probable classes."""
        values, indices = probabilities.topk(min(count, len(probabilities)))
        classes = self.head.config.classes
        return [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]

    def _tokens(self, path: Path) -> Tensor:
        records = read_npz(path)
        meta, kind = records[0].meta, self.encoder.kind
        wanted = "ids" if kind in ("tokens", "codes") else kind
        if meta.feature != wanted:
            raise ValueError(f"it holds {meta.feature}, and head {self.head.config.name!r} reads {kind}")
        if self.encoder.concat_segments > 1:
            count = self.encoder.concat_segments
            raise ValueError(f"head {self.head.config.name!r} sees {count} clips at once: give the video")
        self.head.check_tokenizer(meta.model, meta.weight_hash)
        side = self.protocol.size
        if meta.frames != self.protocol.frames or meta.size != (side, side):
            given = f"{meta.frames} frames of {meta.size[0]} x {meta.size[1]}"
            raise ValueError(f"it holds {given}, and the head sees clips of {self.protocol.frames} of {side} x {side}")
        features = np.stack([record.features for record in records])
        x = torch.from_numpy(features.astype(np.int64 if wanted == "ids" else np.float32))
        return self.encoder.cropped(x.to(self.head.device))

    @torch.no_grad()
    def _average(self, x: Tensor) -> Tensor:
        return self.head(x).softmax(1).mean(0).cpu()


RECONSTRUCTS = "vidtok-t"  # what clips go through for a head that was trained with no tokenizer


def load_head(
    name: str,
    model: str | None,
    device: str,
    recon: bool = False,
    protocol: str | None = None,
    precision: str = "fp32",
):
    """(head, the `InputEncoder` before it, `Protocol`). model: of the tokenizer; None, the one that the head names.
    recon: a head of pixels sees reconstructions. protocol: instead of the head's own. precision: of the tokenizer.

    Raises ValueError for a head that doesn't say what its classes are or how it sees clips, or for a tokenizer that
    isn't its own."""
    from vidtok.eval.recognition.inputs import InputEncoder
    from vidtok.heads import Head
    from vidtok.tokenizer import VideoTokenizer

    head = Head.from_pretrained(name, pick_device(device))
    config, kind = head.config, trained_on(head.config)
    if config.classes is None:
        raise ValueError(f"head {config.name!r} doesn't say what its classes are")
    if recon and config.input["kind"] != "pixels":
        raise ValueError(f"--recon is for heads of pixels, and {config.name!r} reads {kind}")
    kind, tokenizer = "recon" if recon else kind, None
    found = find_protocol(config, protocol)
    if kind != "pixels":
        named = model or (config.tokenizer["name"] if config.tokenizer else RECONSTRUCTS if recon else None)
        if named is None:
            raise ValueError(f"head {config.name!r} names no tokenizer: give --model")
        tokenizer = VideoTokenizer.from_pretrained(named, head.device, precision)
        head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
    grid_crop, side = (config.protocol or {}).get("grid_crop"), config.input.get("stride", [None])[-1]
    return head, InputEncoder(kind, tokenizer, found.at_once, grid_crop, side), found


def trained_on(config) -> str:
    """Of `vidtok.eval.recognition.inputs.INPUTS`: pixels that come from a tokenizer are reconstructions."""
    kind = config.input["kind"]
    return "recon" if kind == "pixels" and config.tokenizer is not None else kind


def find_protocol(config, name: str | None):
    """The head's protocol, with other frames, stride, segments and crops where they are given."""
    from vidtok.eval.recognition.clips import Protocol

    if config.protocol is None and name is None:
        raise ValueError(f"head {config.name!r} names no protocol: give --protocol")
    own = Protocol.of_head(config.protocol) if config.protocol else Protocol()
    if name is None:
        return own
    return Protocol.parse(name, own.size, None if "xu" in name else own.fps, own.resize, own.concat_segments)
