"""Rate-distortion comparison of codecs: `.vtk` files of tokenizers, x264, x265, SVT-AV1 and VVenC.

Result schema "vidtok.compression/1":

    schema          that string
    protocol        source, split, frames, size, fps, crop, and one line on each metric
    n_total, n_used, n_failed, failures [{name, reason}]: clips that can't be read
    codecs          for each codec its label and all settings (see `vidtok.eval.compression.codecs`)
    left_out        [{name, reason}]: codecs that ffmpeg lacks or that failed, metrics that can't be measured
    points          for each codec and rate: codec (label), mode, rate, bpp and each metric as a summary
    comparisons     [{point, bpp, codec, metrics}]: a tokenizer's point against a codec of ffmpeg at the same bits per
                    pixel; metrics: tokenizer minus codec as a summary, with n_outside, the number of clips whose rate
                    is outside the codec's range
    bd_rate         {anchor, codecs: {label: {metric: percent of additional bits relative to the anchor at the same
                    value of the metric, or null}}}, or null
    clips           [{name, frames, size, codec, rate, bytes, file_bytes, bpp, and each metric}]
    config          all settings
    provenance      git, versions, device, threads, date
    wall_time_s     seconds of this call

    summary         {mean, stderr, low, high, n}: over clips; low, high: 95 %, bootstrap

Bits per pixel are the bits of the elementary stream divided by the pixels of the codec's input clip.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.datasets import VideoError, iter_video
from vidtok.errors import nearest
from vidtok.eval.compression.codecs import (
    ENCODERS,
    MODES,
    FfmpegCodec,
    FfmpegError,
    TokenizerCodec,
    describe_ffmpeg,
    find_ffmpeg,
    token_sizes,
    vmaf,
)
from vidtok.eval.compression.report import save_frame, summarize, summarize_tokens, write_report
from vidtok.eval.metrics.i3d import I3D
from vidtok.eval.metrics.reconstruction import ms_ssim, psnr
from vidtok.eval.recognition.references import BACKBONE
from vidtok.eval.reconstruction.run import spread
from vidtok.files import validate_local, write_json
from vidtok.inputs import file_version, find_videos
from vidtok.names import escape_name
from vidtok.provenance import provenance
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.perceptual import LPIPS, LogitDistance

SCHEMA = "vidtok.compression/1"
MIN_I3D_FRAMES = 9

Codec = FfmpegCodec | TokenizerCodec


def evaluate(
    inputs: str | Sequence[str],
    output: str | Path,
    *,
    codecs: Sequence[str] = ("vidtok-t", *ENCODERS),
    rates: Mapping[str, Sequence[str]] | None = None,
    entropy: Sequence[str] = ("adaptive",),
    modes: Sequence[str] = MODES,
    preset: str | None = None,
    gop: int = 256,
    ffmpeg: str | None = None,
    size: int | tuple[int, int] | None = 128,
    frames: int | None = 65,
    fps: float | None = None,
    clips: int | None = None,
    split: str | None = None,
    lpips: str | None = None,
    efficientnet: str | None = None,
    i3d: str | None = None,
    crops: int = 4,
    device: str = "auto",
    precision: str = "fp32",
    track: Callable[[Iterable[Path], int], Iterable[Path]] = lambda files, total: files,
) -> dict:
    """Encode and decode every clip with every codec at every rate; write result.json, tables, charts and a page.

    Measurements are kept in the folder, by clip and codec. A call that was stopped can be resumed, and codecs or clips
    can be added.

    Args:
        inputs: one or more videos, folders or archives of videos, or glob patterns. One clip is taken from each file.
        output: folder for the result.
        codecs: keys of `codecs.ENCODERS`, and tokenizers: names, folders or hub ids.
        rates: codec -> its rates. The default rates are those of `codecs.ENCODERS` and `codecs.TOKENIZER_RATES`.
        entropy: entropy models; each tokenizer is measured with all of them.
        modes: coding modes of ffmpeg's encoders, a subset of `codecs.MODES`.
        preset: preset of ffmpeg's encoders; None, the one that each calls medium. gop: largest number of frames from
            one intra frame to the next.
        ffmpeg: path or command; None, the binary of the package imageio-ffmpeg.
        size: int, side of the center crop after resizing the short side to it; (height, width), resize the largest
            centered region of that aspect ratio; None, native, cropped to even sides.
        frames: number of first frames to take from each file, fewer if it is shorter; None, all, held in memory.
        fps: frames per second to resample to; None, native.
        clips: number of files, evenly spread over all; None, all.
        split: name of the split, for the record.
        lpips: file of AlexNet's weights. efficientnet: file of EfficientNet-Lite0's weights, for class agreement per
            frame. i3d: file of I3D's weights, for clips of at least 9 frames. None leaves the metric out.
        crops: number of clips for which crops of all codecs are drawn side by side.
        device, precision ("fp32" or "bf16"): device and precision of the tokenizers. The metrics' networks are fp32 on
            the same device. Encoders of ffmpeg use as many threads as torch.
        track: called with the files and their number, returns the files; for a progress bar.

    Returns:
        The result described at the top of this file.

    Raises:
        UserError: there is no video or no ffmpeg.
        ValueError: an illegal argument, or no clip could be measured.
    """
    validate_local(output)
    start, output = time.perf_counter(), Path(output)
    inputs = [inputs] if isinstance(inputs, str) else [str(each) for each in inputs]
    files = [file for file, _ in find_videos(inputs)]
    files = spread(files, clips or len(files))
    where = pick_device(device)
    options = {"preset": preset, "gop": gop, "threads": torch.get_num_threads()}
    chosen, left_out, program = make_codecs(
        codecs, rates or {}, entropy, modes, ffmpeg, options, partial(_load, device=where, precision=precision)
    )
    metrics = _Metrics(lpips, efficientnet, i3d, program, where, left_out)
    taken = {"size": size, "frames": frames, "fps": fps}
    run = _Run(output, chosen, metrics, taken, crops, left_out)
    for file in track(files, len(files)):
        run.add(file)
    if not run.rows:
        reason = (run.failures or left_out or [{"name": "inputs", "reason": "no codec"}])[0]
        raise ValueError(f"no clip could be measured: {reason['name']}: {reason['reason']}")
    result = {
        "schema": SCHEMA,
        "protocol": {
            "source": " ".join(inputs),
            "split": split,
            "frames": frames,
            "size": list(size) if isinstance(size, tuple) else size,
            "fps": "native" if fps is None else fps,
            "crop": _crop(size, frames),
            **metrics.notes,
        },
        "n_total": len(files),
        "n_used": len({row["name"] for row in run.rows}),
        "n_failed": len(run.failures),
        "failures": run.failures,
        "codecs": [{"label": codec.label, **codec.settings, "rates": list(codec.rates or ())} for codec in chosen],
        "left_out": left_out,
        **summarize(run.rows, {codec.label: codec.mode for codec in chosen}, left_out),
        "clips": run.rows,
        "config": {"entropy": list(entropy), "modes": list(modes), **options, "clips": clips, "precision": precision},
        "provenance": provenance(where),
        "wall_time_s": time.perf_counter() - start,
    }
    write_json(output / "result.json", result)
    write_report(result, output, run.pictures)
    return result


def compare_entropy(
    inputs: str | Sequence[str],
    output: str | Path,
    *,
    models: Sequence[str] = ("vidtok-t",),
    size: int | None = 128,
    frames: int | None = None,
    clips: int | None = None,
    split: str | None = None,
    device: str = "auto",
    track: Callable[[Iterable[Path], int], Iterable[Path]] = lambda files, total: files,
) -> dict:
    """Compare the entropy models on tokens of videos, and write the result to tokens.json in the folder `output`.

    Args:
        inputs, clips, split, device, track: as in `evaluate`. models: tokenizers that have a prior.
        size: short side of whole frames in pixels. frames: number of first frames to take from each file; None, all.

    Returns:
        A dict with schema, protocol, provenance, wall_time_s, and

        - models: {name: {saved, encode_kbs, decode_kbs}}. saved: {entropy model: {total, median}}, fraction of the
          packed bits that is saved, over all clips and in the median clip. encode_kbs, decode_kbs: {entropy model: kB
          of packed tokens per CPU second}.
        - clips: rows of `codecs.token_sizes` with name and model.

    Raises:
        UserError: there is no video, or a tokenizer has no prior.
    """
    validate_local(output)
    start = time.perf_counter()
    inputs = [inputs] if isinstance(inputs, str) else [str(each) for each in inputs]
    files = [file for file, _ in find_videos(inputs)]
    files = spread(files, clips or len(files))
    where = pick_device(device)
    tokenizers = {name: VideoTokenizer.from_pretrained(name, where) for name in models}
    rows = []
    for file in track(files, len(files)):
        for name, tokenizer in tokenizers.items():
            rows.append({"name": escape_name(file.name), "model": name, **token_sizes(tokenizer, file, size, frames)})
    result = {
        "schema": "vidtok.compression.tokens/1",
        "protocol": {"source": " ".join(inputs), "split": split, "size": size, "frames": frames, "clips": len(files)},
        "models": {name: summarize_tokens([row for row in rows if row["model"] == name]) for name in models},
        "clips": rows,
        "provenance": provenance(where),
        "wall_time_s": time.perf_counter() - start,
    }
    write_json(Path(output) / "tokens.json", result)
    return result


def make_codecs(
    names: Sequence[str],
    rates: Mapping[str, Sequence[str]],
    entropy: Sequence[str],
    modes: Sequence[str],
    ffmpeg: str | None,
    options: Mapping,
    load: Callable[[str], VideoTokenizer],
) -> tuple[list[Codec], list[dict], str | None]:
    """Return (codecs, [{name, reason}] of codecs that ffmpeg lacks, path of an ffmpeg with libvmaf or None).

    Raises:
        ValueError: an unknown mode, or rates for a codec that isn't among the names.
        UserError: an encoder of ffmpeg is named, and there is no ffmpeg.
    """
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: {nearest(mode, MODES)}")
    for name in rates:
        if name not in names:
            raise ValueError(f"rates of {name!r}, which is not among the codecs: {nearest(name, names)}")
    found: list[Codec] = []
    left_out: list[dict] = []
    program = None
    if ffmpeg is not None or any(name in ENCODERS for name in names):
        program = describe_ffmpeg(find_ffmpeg(ffmpeg))
    for name in names:
        own = tuple(rates[name]) if name in rates else None
        if name not in ENCODERS:
            tokenizer = load(name)
            found += [TokenizerCodec(tokenizer, model, own) for model in entropy]
            continue
        assert program is not None
        if ENCODERS[name].library in program.encoders:
            found += [FfmpegCodec(name, mode, program, own, **options) for mode in modes]
        else:
            left_out.append({"name": name, "reason": f"ffmpeg {program.version} has no {ENCODERS[name].library}"})
    if program is not None and not program.vmaf:
        left_out.append({"name": "vmaf", "reason": f"ffmpeg {program.version} has no libvmaf"})
    return found, left_out, program.program if program is not None and program.vmaf else None


def _load(name: str, device: torch.device, precision: str) -> VideoTokenizer:
    return VideoTokenizer.from_pretrained(name, device, precision)


class _Run:
    """Measurements of one call of `evaluate`.

    Attributes:
        rows: a dict for each clip, codec and rate. failures: [{name, reason}] of clips that can't be read.
        pictures: clip -> codec -> folder with a frame for each rate; only the first clips.
    """

    def __init__(self, output: Path, codecs: list[Codec], metrics: "_Metrics", taken: dict, crops: int, left_out: list):
        self.output, self.codecs, self.metrics, self.taken = output, codecs, metrics, taken
        self.crops, self.left_out = crops, left_out
        self.rows: list[dict] = []
        self.failures: list[dict] = []
        self.pictures: dict[str, dict[str, Path]] = {}
        self.used = 0

    def add(self, file: Path) -> None:
        name = escape_name(str(file))
        try:
            version = str(file_version(file))
            keys = [self._key(version, codec) for codec in self.codecs]
            if not all(key.exists() for key in keys):
                clip, fps = read_clip(file, **self.taken)
                original = self.metrics.original(clip)
        except (VideoError, ValueError) as error:
            self.failures.append({"name": name, "reason": str(error).removeprefix(f"{name}: ")})
            return
        drawn, self.used = self.used < self.crops, self.used + 1
        for codec, key in zip(self.codecs, keys, strict=True):
            if not key.exists():
                rows, reason = self._measure(codec, clip, fps, original, key.with_suffix("") if drawn else None)
                write_json(key, {"rows": rows, "reason": reason})
            known = json.loads(key.read_text())
            self.rows += [{"name": name, **row} for row in known["rows"]]
            if drawn:
                self.pictures.setdefault(name, {})[codec.label] = key.with_suffix("")
            if known["reason"]:
                self.left_out.append({"name": f"{codec.label}, {name}", "reason": known["reason"]})

    def _key(self, version: str, codec: Codec) -> Path:
        """Return the cache file of one codec on one clip. Its name is a hash of all settings."""
        facts = [version, self.taken, codec.settings, codec.rates, self.metrics.facts, self.used < self.crops]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
        return self.output / "clips" / f"{name}.json"

    def _measure(
        self, codec: Codec, clip: Tensor, fps: float, original: dict, folder: Path | None
    ) -> tuple[list[dict], str]:
        """Measure all rates; return (rows, reason why some rates are missing or "")."""
        _, _, frames, height, width = clip.shape
        if folder is not None:
            save_frame(folder / "original.png", clip)
        rows: list[dict] = []
        for rate in codec.rates or ():
            try:
                coded = codec.code(clip, fps, rate)
            except FfmpegError as error:
                return rows, f"at {rate}: {error}"
            row = {"frames": frames, "size": [height, width], "codec": codec.label, "rate": rate}
            row |= {"bytes": coded.bytes, "file_bytes": coded.file_bytes}
            row["bpp"] = 8 * coded.bytes / (frames * height * width)
            row |= self.metrics.measure(clip, coded.video, original, fps)
            row |= {"encode_fps": frames / coded.encode_s, "decode_fps": frames / coded.decode_s}
            if folder is not None:
                save_frame(folder / f"{rate}.png", coded.video)
            rows.append(row)
        return rows, ""


def read_clip(
    file: Path, size: int | tuple[int, int] | None, frames: int | None, fps: float | None
) -> tuple[Tensor, float]:
    """Read the first frames of a video as described in `evaluate`: (uint8 [1, 3, T, H, W] with even sides, fps)."""
    shape = (size, size) if isinstance(size, int) else size
    parts, count = [], 0
    with iter_video(file, fps, shape, multiple=2) as stream:
        rate = float(stream.fps)
        for part in stream:
            parts.append(((part + 1) * 127.5).round().clamp(0, 255).byte())
            count += part.shape[2]
            if frames is not None and count >= frames:
                break
    return torch.cat(parts, 2)[:, :, :frames], rate


def _crop(size: int | tuple[int, int] | None, frames: int | None) -> str:
    first = "all frames" if frames is None else f"first {frames} frames"
    if size is None:
        return f"{first}, native size, cropped to even sides"
    if isinstance(size, int):
        return f"{first}, short side {size}, center crop"
    return f"{first}, largest centered region of {size[0]} x {size[1]}, resized"


class _Metrics:
    """Metrics that compare a decoded clip with its original.

    Attributes:
        notes: metric -> its description on one line. facts: settings that the values depend on.
    """

    def __init__(
        self, lpips: str | None, efficientnet: str | None, i3d: str | None, ffmpeg: str | None, device, left_out: list
    ):
        self.device, self.ffmpeg = device, ffmpeg
        self.lpips = LPIPS("alex", lpips).to(device) if lpips else None
        self.classifier = LogitDistance(BACKBONE, efficientnet).to(device) if efficientnet else None
        self.i3d = I3D(i3d).to(device) if i3d else None
        self.notes = {
            "psnr": "8-bit RGB, MSE over all frames of a clip, at most 100 dB",
            "psnr_y": "same of BT.709 luma",
            "ms_ssim": "RGB, mean over frames; as many of five scales as fit, their weights normalized",
        }
        if self.lpips:
            self.notes["lpips"] = "v0.1, AlexNet, mean over frames"
        if self.classifier:
            self.notes["frame_agreement"] = f"share of frames whose {BACKBONE} class is that of the original frame"
            self.notes["frame_confidence"] = "probability of the original's class over that in the original, mean"
        if self.i3d:
            self.notes["i3d_agreement"] = "1 where I3D's Kinetics-400 class is that of the original clip"
            self.notes["i3d_confidence"] = "probability of the original's class over that in the original"
        if self.ffmpeg:
            self.notes["vmaf"] = "libvmaf's default model, mean over frames"
        for metric, flag in (("lpips", lpips), ("frame_agreement", efficientnet), ("i3d_agreement", i3d)):
            if not flag:
                left_out.append({"name": metric, "reason": "no weights given"})
        self.facts = [sorted(self.notes.items()), [lpips, efficientnet, i3d]]

    @torch.inference_mode()
    def original(self, clip: Tensor) -> dict:
        """Compute the classifiers' probabilities for an original clip, once for all its decoded versions."""
        x = _floats(clip, self.device)
        return {name: probabilities(x) for name, probabilities in self._classifiers(x.shape[2]).items()}

    @torch.inference_mode()
    def measure(self, clip: Tensor, decoded: Tensor, original: Mapping[str, Tensor], fps: float) -> dict:
        """Compare uint8 clips [1, 3, T, H, W]; return {metric: value}."""
        x, y = _floats(clip, self.device), _floats(decoded, self.device)
        row = {"psnr": psnr(x, y).item(), "psnr_y": psnr(_luma(x), _luma(y)).item(), "ms_ssim": ms_ssim(x, y).item()}
        if self.lpips is not None:
            row["lpips"] = self.lpips.for_video(x, y).item()
        if self.ffmpeg is not None:
            row["vmaf"] = vmaf(self.ffmpeg, clip, decoded, fps)
        for name, probabilities in self._classifiers(x.shape[2]).items():
            before, after = original[name], probabilities(y)
            best = before.argmax(1, keepdim=True)
            row[f"{name}_agreement"] = (after.argmax(1, keepdim=True) == best).double().mean().item()
            row[f"{name}_confidence"] = (after.gather(1, best) / before.gather(1, best)).double().mean().item()
        return row

    def _classifiers(self, frames: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the classifiers that accept clips of this number of frames."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        if (classifier := self.classifier) is not None:
            found["frame"] = lambda x: classifier.frame_probabilities(x[0])
        if (i3d := self.i3d) is not None and frames >= MIN_I3D_FRAMES:
            found["i3d"] = lambda x: i3d(x).softmax(1)
        return found


def _floats(clip: Tensor, device) -> Tensor:
    return clip.to(device).float() / 127.5 - 1


def _luma(x: Tensor) -> Tensor:
    """Convert RGB [1, 3, T, H, W] to BT.709 luma, repeated in all three channels."""
    weights = x.new_tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1, -1)
