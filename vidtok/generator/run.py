"""Generate clips: `generate` in memory, `generate_files` into files, prefixes from files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.datasets import VideoError, read_video, write_video
from vidtok.datasets.frames import frame_rows, tiled
from vidtok.errors import UserError
from vidtok.extraction.npz import write_npz
from vidtok.extraction.record import Record, RecordMeta, id_type
from vidtok.generator import from_pretrained, load_tokenizer
from vidtok.generator.base import GeneratorConfig
from vidtok.generator.long import generate_samples

PICTURES = (".png", ".gif", ".mp4")  # of all clips in one file
PREFIX_FRAMES = 5


@dataclass(frozen=True)
class GeneratedClip:
    """One sample.

    Attributes:
        name: its class and number, "left-0003".
        label: name of its class, or None.
        ids: int64 [t, h, w], its tokens. video: float32 [3, T, H, W] in [-1, 1].
    """

    name: str
    label: str | None
    ids: Tensor
    video: Tensor


class Samples:
    """Clips that are sampled while they are iterated over, see `generate`. Iterating again gives the same ones.

    Attributes:
        config: the `GeneratorConfig` of the model. names: of the clips. fps: frames per second to play them at.
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
        frames: int | None = None,
        fps: float | None = None,
        tokenizer: str | None = None,
        device: str = "auto",
        batch: int = 8,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **sampling,
    ):
        labels, files = _several(labels), _several(prefix)
        if labels and free:
            raise UserError("give --label or --free, not both")
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
        self._prefixes = None
        if files:
            self._prefixes = read_prefixes(files, prefix_frames or PREFIX_FRAMES, self._tokenizer, config)
        conditions = (self._labels, self._prefixes)
        number = number or max(1, *(0 if given is None else len(given) for given in conditions))
        self.fps = fps or config.fps or 25
        self._latents = None if frames is None else latents_of(frames, config.stride[0])
        self._generator.check_sampling(**sampling)
        self.names = [f"{name_of(self._labels, i)}{i:04d}" for i in range(number)]
        self._batch, self._settings = batch, {"seed": seed, "progress": progress, **sampling}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[GeneratedClip]:
        conditions = (len(self), self._labels, self._prefixes, self._batch, self._latents)
        done = 0
        for ids in generate_samples(self._generator, *conditions, **self._settings):
            for sample in ids:
                video = self._tokenizer.decode(sample[None])[0].cpu()
                label = None if self._labels is None else self._labels[done % len(self._labels)]
                label = self.config.classes[label] if isinstance(label, int) else label
                yield GeneratedClip(self.names[done], label, sample.cpu(), video)
                done += 1


def generate(
    model: str, number: int | None = None, labels: str | int | Sequence[str | int] | None = None, **settings
) -> Samples:
    """Sample clips from a trained generator.

        for clip in vidtok.generator.generate("runs/masked/model", 4, ["left"], steps=12, guidance=2, seed=1):
            vidtok.write_video(f"{clip.name}.mp4", clip.video[None], 25)

    Args:
        model: folder or hub id of a generator.
        number: of clips; None, one of each class, or one per prefix.
        labels: name or number of a class; several are taken in turn; None, all. free: without a class.
        prefix: video to go on from, its first `prefix_frames` frames, 1 + 4k (5); several are taken in turn.
        frames: of each clip, 1 + 4k, where it is to be longer than the model's own; fps: the model's, or 25.
        tokenizer: where the generator's tokenizer is; None, found by its name. device: "auto", "cpu", "cuda", ...
        batch: clips at a time (8). seed: sample i depends on it and on i alone (0).
        progress: called with the steps done of a batch, and their number.
        steps, guidance, temperature, ...: settings of sampling, which belong to kinds of generators: see
            `Generator.generate` and the `sample` of each kind.

    Returns:
        An iterable of `GeneratedClip`s, with a length; they are sampled while it is iterated over.

    Raises:
        ValueError, UserError: for a model or a tokenizer that isn't there, an unknown class, settings that the kind
            doesn't have.
    """
    return Samples(model, number, labels, **settings)


def generate_files(
    model: str,
    output: str | Path,
    *,
    format: str | None = None,
    tokens: bool = False,
    force: bool = False,
    report: Callable[[int, int], None] = lambda done, number: None,
    **settings,
) -> Samples:
    """Sample clips from a trained generator and write them.

    Args:
        output: a folder, which gets a file for each clip; or one .png (a clip in each row), .gif or .mp4 (side by
            side) of all.
        format: of clips in a folder, "mp4" (default) or "gif". tokens: write token files, too.
        force: overwrite files that exist.
        report: called with the clips done and their number.
        model, settings: as of `generate`.

    Returns:
        What was written, as `generate` gives it.

    Raises:
        As `generate`; and UserError for a file that is in the way.
    """
    target = Path(output)
    single = target.suffix.lower() in PICTURES
    if single and target.exists() and not force:
        raise UserError(f"{target} exists: --force overwrites it")
    if single and tokens:
        raise UserError("--tokens needs a folder: give -o DIR")
    samples = generate(model, **settings)
    if single:
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        endings = [format or "mp4", *(["npz"] if tokens else [])]
        for file in (target / f"{name}.{ending}" for name in samples.names for ending in endings):
            if file.exists() and not force:
                raise UserError(f"{file} exists: --force overwrites it")
    report(0, len(samples))
    videos = []
    for done, clip in enumerate(samples, 1):
        if single:
            videos.append(clip.video)
        else:
            write_video(target / f"{clip.name}.{format or 'mp4'}", clip.video, samples.fps)
        if tokens:
            write_ids(target / f"{clip.name}.npz", clip, samples.config, samples.fps)
        report(done, len(samples))
    if single and target.suffix.lower() == ".png":
        write_video(target, frame_rows(torch.stack(videos))[:, None], samples.fps)
    elif single:
        write_video(target, tiled(torch.stack(videos)), samples.fps)
    return samples


def _several(given) -> list:
    """One or several of something, or None, as a list."""
    if given is None:
        return []
    return [given] if isinstance(given, str | int | Path) else list(given)


def named(label: str | int, classes: Sequence[str]) -> int | str:
    """Find a class by its name, which may be a number, too, or else by its number."""
    return int(label) if isinstance(label, str) and label.isdigit() and label not in classes else label


def name_of(labels: list | None, number: int) -> str:
    """Return the name of a sample's file before its number."""
    return "" if labels is None else f"{str(labels[number % len(labels)]).replace(' ', '_').replace('/', '_')}-"


def latents_of(frames: int, stride: int) -> int:
    """Latent frames of a clip. Raises ValueError for a length that the stride doesn't give."""
    if frames % stride != 1 % stride:
        raise ValueError(f"a clip has 1 + {stride}k frames, not {frames}")
    return 1 + (frames - 1) // stride


def read_prefixes(files: Sequence[str | Path], frames: int, tokenizer, config: GeneratorConfig) -> Tensor:
    """Encode the beginnings of videos as tokens, int64 [files, latents, h, w], cut to the generator's size."""
    size = (config.grid[1] * config.stride[1], config.grid[2] * config.stride[2])
    latents = latents_of(frames, config.stride[0])
    ids = []
    for file in files:
        video = read_video(file, config.fps, size, frames, config.stride)
        if video.shape[2] < frames:
            raise VideoError(file, f"fewer than {frames} frames")
        ids.append(tokenizer.encode(video)[:, :latents])
    return torch.cat(ids)


def write_ids(path: Path, clip: GeneratedClip, config: GeneratorConfig, fps: float) -> None:
    """Write a token file, as `vidtok extract` does, of a clip that never was."""
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
