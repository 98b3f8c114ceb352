"""Generation of clips in memory and into files, with conditions read from videos and masks.

Legend: T H W frames, height and width of a clip, t h w its token grid.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.datasets import VideoError, probe_video, read_video, write_video
from vidtok.datasets.frames import frame_rows, tiled
from vidtok.errors import UserError, nearest
from vidtok.extraction.npz import write_npz
from vidtok.extraction.record import Record, RecordMeta, id_type
from vidtok.files import validate_local
from vidtok.generator import from_pretrained, load_tokenizer
from vidtok.generator.base import GeneratorConfig
from vidtok.generator.long import generate_samples, validate_length
from vidtok.provenance import provenance

if TYPE_CHECKING:
    from vidtok.heads import Head

PICTURES = (".png", ".gif", ".mp4", ".html")  # formats of one file with all clips
PREFIX_FRAMES = 5
TASKS = ("class", "predict", "interpolate", "inpaint", "outpaint")


@dataclass(frozen=True)
class GeneratedClip:
    """A generated clip.

    Attributes:
        name: class and number of the clip, such as "left-0003".
        label: name of the class, or None.
        ids: tokens, int64 [t, h, w].
        video: frames, float32 [3, T, H, W] in [-1, 1].
    """

    name: str
    label: str | None
    ids: Tensor
    video: Tensor


class Samples:
    """Iterable of clips that are sampled during the iteration; see `generate`. Every iteration gives the same clips.

    Attributes:
        config: the `GeneratorConfig` of the model.
        names: names of the clips.
        fps: frame rate of the clips.
    """

    def __init__(
        self,
        model: str,
        number: int | None = None,
        labels: str | int | Sequence[str | int] | None = None,
        *,
        free: bool = False,
        prefix: str | Path | Sequence[str | Path] | None = None,
        prefix_frames: int | None = None,
        task: str | None = None,
        video: str | Path | Sequence[str | Path] | None = None,
        mask: str | Path | Tensor | None = None,
        frames: int | None = None,
        fps: float | None = None,
        tokenizer: str | None = None,
        device: str = "auto",
        batch: int = 8,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **sampling,
    ):
        labels = _several(labels)
        if labels and free:
            raise UserError("give --label or --free, not both")
        task, files = _task_of(task, _several(prefix), _several(video), mask)
        place = pick_device(device)
        self._generator = from_pretrained(model, place)
        config = self.config = self._generator.config
        self._tokenizer = load_tokenizer(config, tokenizer, place)
        if labels and not config.classes:
            raise UserError(f"{model} was trained without classes: leave --label out")
        self._labels = None
        if config.classes and not free:
            self._labels = [named(label, config.classes) for label in labels or config.classes]
            self._generator.check_label(self._labels, len(self._labels))
        self._given: Tensor | None = None
        self._known: Tensor | None = None
        self._latents = None if frames is None else latents_of(frames, config.stride[0])
        if self._latents is not None:
            validate_length(config.grid[0], self._latents)
        if task == "predict":
            prefix_frames = prefix_frames or PREFIX_FRAMES
            most = (frames or frames_of(config)) - config.stride[0]
            if prefix_frames > most:
                raise UserError(f"--prefix-frames {prefix_frames} leaves nothing to generate: give at most {most}")
            self._given = read_prefixes(files, prefix_frames, self._tokenizer, config)
        elif task != "class":
            if self._generator.causal:
                raise UserError(f"--task {task} needs a masked or diffusion generator: {model} only continues videos")
            anew_THW = plan_mask(task, mask, config, frames)
            self._given = read_around(files, anew_THW, self._tokenizer, config)
            self._known = known_tokens(anew_THW, config.stride)
        elif config.needs_video:
            tasks = ", ".join(config.tasks)
            warnings.warn(f"{config.name} was trained on {tasks} alone: give a video to go on from", stacklevel=3)
        conditions = (self._labels, self._given)
        number = number or max(1, *(0 if given is None else len(given) for given in conditions))
        self.fps = fps or config.fps or (probe_video(files[0]).fps if files else 25)
        self._generator.check_sampling(**sampling)
        self.names = [f"{name_of(self._labels, i)}{i:04d}" for i in range(number)]
        self._batch, self._settings = batch, {"seed": seed, "progress": progress, **sampling}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[GeneratedClip]:
        conditions = (len(self), self._labels, self._given, self._batch, self._latents, self._known)
        done = 0
        for ids in generate_samples(self._generator, *conditions, **self._settings):
            for sample in ids:
                video = self._tokenizer.decode(sample[None])[0].cpu()
                label = None if self._labels is None else self._labels[done % len(self._labels)]
                label = self.config.classes[label] if isinstance(label, int) else label
                yield GeneratedClip(self.names[done], label, sample.cpu(), video)
                done += 1

    def load_judge(self, name: str) -> "Head":
        """Load a recognition head that judges the clips. Raises ValueError if it reads other tokens."""
        from vidtok.eval.generation.extractors import load_head  # it takes seconds to import, and most runs need none

        return load_head(name, self._tokenizer, self._generator.device)

    def write_page(self, path: Path, clips: Sequence[GeneratedClip], judge: "Head | None" = None) -> None:
        """Write a page of generated clips.

        Args:
            path: html file to write.
            clips: the clips.
            judge: recognition head whose verdict is shown; None, no verdict.
        """
        # Imported here: reports and recognizers take seconds to import, and other formats don't need them.
        from vidtok.eval.generation.extractors import predict_classes
        from vidtok.eval.generation.report import SampleClip, write_samples_page

        seen: list[str | None] = [None] * len(clips)
        lines = [f"{self.config.kind} generator of {self.config.tokenizer} tokens; " + self._describe_sampling()]
        if judge is not None:
            lines.append(f"Recognizer: {judge.config.name}, weights {judge.weight_hash}.")
            for i, clip in enumerate(clips):
                ids, video = (tensor[None].to(judge.device) for tensor in (clip.ids, clip.video))
                (seen[i],) = predict_classes(judge, ids, video, self.config.classes)
        shown = [SampleClip(clip.name, clip.video, clip.label, one) for clip, one in zip(clips, seen, strict=True)]
        title, facts = f"{len(clips)} clips of {self.config.name}", provenance(self._generator.device)
        write_samples_page(path, title, lines, {"Clips": shown}, self.fps, "vidtok generate", facts)

    def _describe_sampling(self) -> str:
        given = {name: value for name, value in self._settings.items() if name != "progress"}
        return ", ".join(f"{name} {value}" for name, value in given.items()) + "."


def generate(
    model: str, number: int | None = None, labels: str | int | Sequence[str | int] | None = None, **settings
) -> Samples:
    """Sample clips from a trained generator.

        for clip in vidtok.generator.generate("runs/masked/model", 4, ["left"], steps=12, guidance=2, seed=1):
            vidtok.write_video(f"{clip.name}.mp4", clip.video[None], 25)

    Args:
        model: folder or hub id of a generator.
        number: number of clips; None, one per class, or one per video.
        labels: name or number of a class, or several, which are used in turn; None, all classes.
        free: generate without a class.
        prefix: video to continue, or several, which are used in turn.
        prefix_frames: number of frames of the prefix, 1 + 4k; None, 5.
        task: the part to generate: "class" (default), whole clips; "predict", the frames after a prefix; "interpolate",
            frames in the middle; "inpaint", the inside of a box; "outpaint", the outside of a box. Autoregressive
            generators only support "class" and "predict".
        video: video that the task keeps a part of, or several, which are used in turn.
        mask: the region to generate. For "interpolate", frames "START:END" (default: all but the first and the last
            latent frame). For "inpaint" and "outpaint", a box "TOP:BOTTOM,LEFT:RIGHT" in pixels of the generator's
            frames (default: half of each side, in the middle); an image file, white where to generate, which is cropped
            and resized like the video; or bool [T, H, W] or [H, W], true where to generate. A token is kept if all of
            its pixels are kept.
        frames: frames per clip, 1 + 4k, for clips longer than those in training, which a sliding window makes; None,
            as in training. With "interpolate", "inpaint" and "outpaint", the number of frames of the video to use.
        fps: frame rate; None, that of the model, of the first video, or 25. All clips have it.
        tokenizer: name, folder or hub id of the tokenizer; None, the name that the generator records.
        device: "auto", "cpu", "cuda", ...
        batch: clips per batch, by default 8.
        seed: seed of the random numbers, by default 0. Sample i depends only on the seed and on i.
        progress: called with (steps done, all steps) of a batch.
        steps, guidance, temperature, ...: sampling options; see `Generator.generate` and the `sample` method of each
            kind of generator.

    Returns:
        An iterable of `GeneratedClip`s with a length. The clips are sampled during the iteration.

    Raises:
        ValueError, UserError: the model or tokenizer is not found, an unknown class or task, an illegal mask, or
            options that the kind doesn't have.
    """
    return Samples(model, number, labels, **settings)


def generate_files(
    model: str,
    output: str | Path,
    *,
    format: str | None = None,
    tokens: bool = False,
    head: str | None = None,
    force: bool = False,
    report: Callable[[int, int], None] = lambda done, number: None,
    **settings,
) -> Samples:
    """Sample clips from a trained generator and write them.

    Args:
        model, settings: see `generate`.
        output: a folder, for one file per clip; or one file for all clips: .png (a clip per row), .gif or .mp4 (side by
            side), or .html (a page of playable clips).
        format: file format of clips in a folder, "mp4" or "gif"; None, "mp4".
        tokens: also write token files.
        head: recognition head whose verdict the page shows: name, folder or hub id; None, no verdict.
        force: overwrite existing files.
        report: called with (clips done, all clips).

    Returns:
        The clips that were written.

    Raises:
        ValueError, UserError: as `generate`; also UserError if a file exists.
    """
    validate_local(output)
    target = Path(output)
    single = target.suffix.lower() in PICTURES
    if single and target.exists() and not force:
        raise UserError(f"{target} exists: --force overwrites it")
    if single and tokens:
        raise UserError("--tokens needs a folder: give -o DIR")
    if head is not None and target.suffix.lower() != ".html":
        raise UserError(f"--head judges the clips of a page: give -o PAGE.html, not {target.name}")
    samples = generate(model, **settings)
    judge = None if head is None else samples.load_judge(head)  # a wrong one fails before clips are sampled
    if single:
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        endings = [format or "mp4", *(["npz"] if tokens else [])]
        for file in (target / f"{name}.{ending}" for name in samples.names for ending in endings):
            if file.exists() and not force:
                raise UserError(f"{file} exists: --force overwrites it")
    report(0, len(samples))
    clips = []
    for done, clip in enumerate(samples, 1):
        if single:
            clips.append(clip)
        else:
            write_video(target / f"{clip.name}.{format or 'mp4'}", clip.video, samples.fps)
        if tokens:
            write_ids(target / f"{clip.name}.npz", clip, samples.config, samples.fps)
        report(done, len(samples))
    if single and target.suffix.lower() == ".html":
        samples.write_page(target, clips, judge)
    elif single:
        videos = torch.stack([clip.video for clip in clips])
        write_video(
            target, frame_rows(videos)[:, None] if target.suffix.lower() == ".png" else tiled(videos), samples.fps
        )
    return samples


def _several(given) -> list:
    """Return one or several values, or None, as a list."""
    if given is None:
        return []
    return [given] if isinstance(given, str | int | Path) else list(given)


def named(label: str | int, classes: Sequence[str]) -> int | str:
    """Convert a label to a number if it is a number and not the name of a class."""
    return int(label) if isinstance(label, str) and label.isdigit() and label not in classes else label


def name_of(labels: list | None, number: int) -> str:
    """Return the part of a sample's file name before its number, made from its label."""
    return "" if labels is None else f"{str(labels[number % len(labels)]).replace(' ', '_').replace('/', '_')}-"


def frames_of(config: GeneratorConfig) -> int:
    """Return the number of frames of the training clips."""
    return 1 + config.stride[0] * (config.grid[0] - 1)


def latents_of(frames: int, stride: int) -> int:
    """Return the number of latent frames of a clip. Raises ValueError if the number of frames is not 1 + stride * k."""
    if frames % stride != 1 % stride:
        raise ValueError(f"a clip has 1 + {stride}k frames, not {frames}")
    return 1 + (frames - 1) // stride


def read_prefixes(files: Sequence[str | Path], frames: int, tokenizer, config: GeneratorConfig) -> Tensor:
    """Encode the first frames of videos, cropped to the generator's size -> int64 ids [files, latents, h, w]."""
    size = (config.grid[1] * config.stride[1], config.grid[2] * config.stride[2])
    latents = latents_of(frames, config.stride[0])
    ids = []
    for file in files:
        video = read_video(file, config.fps, size, frames, config.stride)
        if video.shape[2] < frames:
            raise VideoError(file, f"fewer than {frames} frames")
        ids.append(tokenizer.encode(video)[:, :latents])
    return torch.cat(ids)


def _task_of(task: str | None, prefixes: list, videos: list, mask) -> tuple[str, list]:
    """Validate the task; return it and the videos that it uses."""
    task = task or ("predict" if prefixes else "class")
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: {nearest(task, TASKS)}")
    if videos and (prefixes or task == "class"):
        raise UserError("--video is kept by --task interpolate, inpaint or outpaint, or goes on by --task predict")
    if prefixes and task != "predict":
        raise UserError(f"--prefix goes on by --task predict: give --video to {task}")
    if task != "class" and not (prefixes or videos):
        raise UserError(f"--task {task} needs a video: give --video CLIP")
    if mask is not None and task in ("class", "predict"):
        raise UserError(f"--mask is of --task interpolate, inpaint or outpaint, not of {task}")
    return task, prefixes or videos


def plan_mask(
    task: str, mask: str | Path | Tensor | None, config: GeneratorConfig, frames: int | None = None
) -> Tensor:
    """Make the mask of a task, see `generate` -> bool [T, H, W], true where to generate.

    T is `frames` or, without it, the number of frames of the training clips.

    Raises:
        UserError: the mask can't be parsed, does not lie within the clip, or leaves nothing to generate or to keep.
    """
    (_, h, w), (s_t, s_h, s_w) = config.grid, config.stride
    T, H, W = frames or frames_of(config), s_h * h, s_w * w
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool or mask.shape not in ((T, H, W), (H, W)):
            raise UserError(f"a mask is bool [{T}, {H}, {W}] or [{H}, {W}], not {mask.dtype} {list(mask.shape)}")
        anew_THW = mask.expand(T, H, W)
    elif task == "interpolate":
        start, end = _span(str(mask), str(mask), T, "frames") if mask is not None else (1, T - s_t)
        anew_THW = torch.zeros(T, H, W, dtype=torch.bool)
        anew_THW[start:end] = True
    elif mask is not None and Path(mask).is_file():
        anew_THW = (read_video(mask, None, (H, W), 1, config.stride)[0, :, 0].mean(0) > 0).expand(T, H, W)
    else:
        box = str(mask or f"{H // 4}:{H - H // 4},{W // 4}:{W - W // 4}")
        rows, _, columns = box.partition(",")
        (top, bottom), (left, right) = _span(rows, box, H, "rows"), _span(columns, box, W, "columns")
        box_HW = torch.zeros(H, W, dtype=torch.bool)
        box_HW[top:bottom, left:right] = True
        anew_THW = (~box_HW if task == "outpaint" else box_HW).expand(T, H, W)
    known_thw = known_tokens(anew_THW, config.stride)
    if not anew_THW.any() or not known_thw.any():
        what = "make anew" if not anew_THW.any() else f"keep, as a token has {s_t} x {s_h} x {s_w} pixels"
        raise UserError(f"the mask leaves nothing to {what}")
    return anew_THW


def _span(text: str, mask: str, most: int, what: str) -> tuple[int, int]:
    """Parse a range of a mask, "START:END" -> (start, end)."""
    start, colon, end = text.strip().partition(":")
    if not (colon and all(part == "" or part.isdigit() for part in (start, end))):
        raise UserError(
            f"--mask {mask!r} is no image and no range of {what}: give START:END, or TOP:BOTTOM,LEFT:RIGHT of a box"
        )
    first, last = int(start or 0), int(end or most)
    if not 0 <= first < last <= most:
        raise UserError(f"--mask {mask}: want a range within 0:{most} {what}")
    return first, last


def known_tokens(anew_THW: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Find the tokens that are kept: those without a generated pixel -> bool [t, h, w]."""
    s_t, s_h, s_w = stride
    anew_THW = torch.cat([anew_THW[:1].expand(s_t - 1, -1, -1), anew_THW])  # the first latent frame is one frame
    return ~anew_THW.unflatten(2, (-1, s_w)).unflatten(1, (-1, s_h)).unflatten(0, (-1, s_t)).any(5).any(3).any(1)


def read_around(files: Sequence[str | Path], anew_THW: Tensor, tokenizer, config: GeneratorConfig) -> Tensor:
    """Encode videos so that no token depends on the region to generate -> int64 ids [files, t, h, w].

    The receptive field of an encoder is larger than one cell. Pixels to generate are therefore overwritten before
    encoding: by the nearest kept pixel of the frame or, if no pixel of the frame is kept, by the frame before.
    """
    T, H, W = anew_THW.shape
    ids = []
    for file in files:
        video = read_video(file, config.fps, (H, W), T, config.stride)
        if video.shape[2] < T:
            raise VideoError(file, f"fewer than {T} frames")
        for i, anew_HW in enumerate(anew_THW):
            if anew_HW.all():
                video[:, :, i] = video[:, :, i - 1] if i else 0
            elif anew_HW.any():
                rows, columns = distance_transform_edt(anew_HW.numpy(), return_distances=False, return_indices=True)
                video[:, :, i] = video[:, :, i, rows, columns]
        ids.append(tokenizer.encode(video))
    return torch.cat(ids)


def write_ids(path: Path, clip: GeneratedClip, config: GeneratorConfig, fps: float) -> None:
    """Write the tokens of a generated clip to a token file, as `vidtok extract` does for videos."""
    t, h, w = clip.ids.shape
    frames, size = 1 + config.stride[0] * (t - 1), (config.stride[1] * h, config.stride[2] * w)
    dtype = id_type(config.bits)
    meta = RecordMeta(
        feature="ids", model=config.tokenizer, weight_hash=config.weight_hash, precision="fp32", bits=config.bits,
        stride=config.stride, dtype=dtype.name, fps=fps, frames=frames, size=size, coded_size=size, native_size=size,
        native_fps=fps, source="", source_bytes=None, reader=f"generator {config.name}",
        bytes_per_token=dtype.itemsize,
    )  # fmt: skip
    times = np.arange(frames) / fps
    write_npz(path, [Record(clip.name, clip.label, None, clip.ids.numpy().astype(dtype), times, meta)])
