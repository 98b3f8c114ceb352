"""Classification of videos with a trained head, as a whole or window by window.

Legend: V views of one video, T H W video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.datasets import LabeledVideos, VideoError
from vidtok.datasets.backends import split_reader
from vidtok.datasets.frames import indices_at, normalize_video
from vidtok.datasets.seek import read_windows
from vidtok.errors import is_expected, one_line
from vidtok.eval.recognition.inputs import group_segments
from vidtok.extraction import read_npz
from vidtok.inputs import find_files
from vidtok.names import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Recognition:
    """Predicted classes of one video.

    Attributes:
        path: path of the video, or None for a tensor.
        labels: (label, probability), the most probable first; empty if there is an error.
        views: number of clips and crops over which the probabilities are averaged.
        error: why the file can't be classified, or None.
    """

    path: Path | None
    labels: list[tuple[str, float]] = field(default_factory=list)
    views: int = 0
    error: str | None = None


@dataclass(frozen=True)
class LabeledWindow:
    """Predicted classes of a time window of a video.

    Attributes:
        start, end: start and end of the window in seconds from the first frame.
        labels: (label, probability), the most probable first.
    """

    start: float
    end: float
    labels: list[tuple[str, float]]


WINDOWS_AT_ONCE = 8  # number of windows that are decoded together and held in memory


class Recognizer:
    """Classifier of videos: a trained head together with the tokenizer of its input.

        recognizer = vidtok.Recognizer("digits-tokens")
        for found in recognizer(["clip.mp4", "videos/"]):
            print(found.path, found.labels[0])

    Args:
        head: shipped name, folder or hub id.
        model: tokenizer; None, by the name recorded with the head.
        device: "auto", "cpu", "cuda", "cuda:1", ... precision: precision of the tokenizer, "fp32" or "bf16".
        reader: how videos are read, such as "pyav+deinterlace+sar", see `vidtok.datasets.open_video`.

    Attributes:
        head: the `Head`. protocol: the `Protocol` of its clips. encoder: the `InputEncoder`, which maps clips to the
            head's input.

    Raises:
        ValueError: there is no such head, it doesn't record its training data, or the tokenizer isn't the head's.
    """

    def __init__(
        self,
        head: str,
        model: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        reader: str = "auto",
    ):
        split_reader(reader)  # rejects unknown options
        self.reader = reader
        self.head, self.encoder, self.protocol = load_head(head, model, device, precision=precision)

    def __call__(
        self, inputs: str | Path | Tensor | Sequence[str | Path | Tensor], top: int = 5
    ) -> Iterator[Recognition]:
        """Classify videos one after the other.

        Args:
            inputs: one or several of: files in any video format or in .npz, folders of them, glob patterns, or the
                views of one video as float [V, 3, T, H, W] (or [3, T, H, W]) in [-1, 1] with the number of frames and
                the size of `protocol`. Files are cut and resized as in the head's training.
            top: number of labels per video.

        Returns:
            An iterator with one `Recognition` for each video. If a file fails, its `error` is set, and the iteration
            continues.

        Raises:
            UserError: a path doesn't exist, or a pattern matches nothing.
            ValueError: a tensor of another shape.
        """
        several = [inputs] if isinstance(inputs, str | Path | Tensor) else list(inputs)
        planned = [x if isinstance(x, Tensor) else find_files([str(x)], (*VIDEO_SUFFIXES, ".npz")) for x in several]
        items = [x for part in planned for x in ([part] if isinstance(part, Tensor) else [file for file, _ in part])]
        return (self._recognize(x, top) for x in dict.fromkeys(items))  # each file once

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
        """Classify a video or a token file; return (probabilities [classes], number of views in the average)."""
        if path.suffix.lower() == ".npz":
            x = self._tokens(path)
            return self._average(x), len(x)
        videos = LabeledVideos(
            [str(path)],
            [path.name],
            [-1],
            [],
            sampler=self.protocol.sampler(),
            transform=self.protocol.transform(),
            reader=self.reader,
        )
        sample = videos[0]
        if isinstance(sample, VideoError):
            raise sample
        return self.video(sample.video), self.protocol.views

    def windows(
        self, path: str | Path, seconds: float | None = None, hop: float | None = None, top: int = 5
    ) -> Iterator[LabeledWindow]:
        """Classify a video of any length window by window, in bounded memory.

        A window is as long as the clips that the head was trained on. The last window ends with the video.

        Args:
            path: the video.
            seconds: length of a window, only for heads that were trained on frames spread evenly over a video.
            hop: seconds from the start of one window to the next; None, the length of a window.
            top: number of labels per window.

        Yields:
            Windows in order.

        Raises:
            VideoError: the video can't be read.
            ValueError: seconds are missing or don't apply to the head, or the head sees several clips at once.
        """
        protocol = self.protocol
        if protocol.concat_segments:
            raise ValueError(f"head {self.head.config.name!r} sees {protocol.segments} clips at once, and no windows")
        if protocol.stride is None and seconds is None:
            raise ValueError(
                f"head {self.head.config.name!r} sees frames spread over a video: give seconds of a window"
            )
        if protocol.stride is not None and seconds is not None:
            clip = f"{protocol.frames} frames, every {protocol.stride}"
            raise ValueError(f"the windows of head {self.head.config.name!r} are its clips of {clip}: give no seconds")
        if min(seconds or 1, hop or 1) <= 0:
            raise ValueError(f"seconds={seconds} and hop={hop} must be above 0")
        rng, transform = np.random.default_rng(0), protocol.transform()  # the test transform doesn't draw from rng
        spans: list[tuple[float, float]] = []  # (start, end) of all windows

        def choose(times: np.ndarray, fps: float) -> np.ndarray:
            step = (protocol.stride or 1) / (protocol.fps or fps) if seconds is None else seconds / protocol.frames
            span, duration = protocol.frames * step, float(times[-1] + 1 / fps)
            last = max(duration - span, 0.0)
            starts = np.append(np.arange(0, last - 1e-6, hop or span), last)
            spans[:] = zip(starts.tolist(), np.minimum(starts + span, duration).tolist(), strict=True)
            offsets = np.arange(protocol.frames) * step + (0 if seconds is None else step / 2)
            return indices_at(times, starts[:, None] + offsets)

        view, done = partial(transform.view, rng=rng), 0
        for frames_VTHWC, _ in read_windows(path, choose, WINDOWS_AT_ONCE, view, self.reader):
            video = transform.finish(torch.from_numpy(frames_VTHWC).permute(0, 4, 1, 2, 3), rng)
            probabilities = self._probabilities(normalize_video(video)).unflatten(0, (len(frames_VTHWC), -1)).mean(1)
            for (start, end), row in zip(spans[done:], probabilities, strict=False):
                yield LabeledWindow(start, end, self.top(row, top))
            done += len(frames_VTHWC)

    def video(self, video_V3THW: Tensor) -> Tensor:
        """Classify the views of one video, float [V, 3, T, H, W] in [-1, 1]; return probabilities [classes]."""
        views = group_segments(video_V3THW[None], self.encoder.concat_segments)[0]
        return self._average(self.encoder(views.to(self.head.device)))

    def top(self, probabilities: Tensor, count: int) -> list[tuple[str, float]]:
        """Return (label, probability) of the `count` most probable classes."""
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
        self.head.check_tokenizer(meta.model, meta.weight_hash, meta.layer)
        side = self.protocol.size
        if meta.frames != self.protocol.frames or meta.size != (side, side):
            given = f"{meta.frames} frames of {meta.size[0]} x {meta.size[1]}"
            raise ValueError(f"it holds {given}, and the head sees clips of {self.protocol.frames} of {side} x {side}")
        features = np.stack([record.features for record in records])
        x = torch.from_numpy(features.astype(np.int64 if wanted == "ids" else np.float32))
        return self.encoder.cropped(x.to(self.head.device))

    @torch.no_grad()
    def _probabilities(self, views_V3THW: Tensor) -> Tensor:
        return self.head(self.encoder(views_V3THW.to(self.head.device))).softmax(1).cpu()

    @torch.no_grad()
    def _average(self, x: Tensor) -> Tensor:
        return self.head(x).softmax(1).mean(0).cpu()


RECONSTRUCTS = "vidtok-t"  # tokenizer that reconstructs clips for a head that was trained without one


def load_head(
    name: str,
    model: str | None,
    device: str,
    recon: bool = False,
    protocol: str | None = None,
    precision: str = "fp32",
):
    """Load a head with its input encoder and protocol.

    Args:
        name: shipped name, folder or hub id of the head.
        model: tokenizer, see `vidtok.extraction.model.open_tokenizer`; None, the one that the head names.
        device: device of both.
        recon: whether a head on pixels sees reconstructions.
        protocol: protocol by name; None, the head's.
        precision: precision of the tokenizer.

    Returns:
        (`Head`, `InputEncoder`, `Protocol`).

    Raises:
        ValueError: the head has no classes or doesn't record them or its protocol, or the tokenizer isn't the head's.
    """
    from vidtok.eval.recognition.inputs import ORIGINAL, InputEncoder, trained_on
    from vidtok.extraction.model import open_tokenizer
    from vidtok.heads import Head
    from vidtok.tokenizer import VideoTokenizer

    head = Head.from_pretrained(name, pick_device(device))
    config, kind = head.config, trained_on(head.config)
    head.check_classes()
    if config.classes is None:
        raise ValueError(f"head {config.name!r} doesn't say what its classes are")
    if recon and kind not in ("pixels", "recon"):
        raise ValueError(f"--recon is for heads of pixels, and {config.name!r} reads {kind}")
    kind, tokenizer = "recon" if recon else kind, None
    found = find_protocol(config, protocol)
    if kind not in ORIGINAL:
        named = model or (config.tokenizer["name"] if config.tokenizer else RECONSTRUCTS if recon else None)
        if named is None:
            raise ValueError(f"head {config.name!r} names no tokenizer: give --model")
        # A head's file can't name a user's class, whose module would be imported.
        load = VideoTokenizer.from_pretrained if model is None else open_tokenizer
        tokenizer = load(named, head.device, precision)
        head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash, tokenizer.encoder.feature_layer)
    grid_crop, side = (config.protocol or {}).get("grid_crop"), config.input.get("stride", [None])[-1]
    return head, InputEncoder(kind, tokenizer, found.at_once, grid_crop, side), found


def find_protocol(config, name: str | None):
    """Return the head's protocol; name: overrides its frames, stride, segments and crops; None keeps them."""
    from vidtok.eval.recognition.clips import Protocol

    if config.protocol is None and name is None:
        raise ValueError(f"head {config.name!r} names no protocol: give --protocol")
    own = Protocol.of_head(config.protocol) if config.protocol else Protocol()
    if name is None:
        return own
    return Protocol.parse(name, own.size, None if "xu" in name else own.fps, own.resize, own.concat_segments)
