"""Demo of a tokenizer on one clip: metrics, a picture, recognized actions, a continuation. See `run_demo`."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.datasets import MovingDigits, demo_clip, write_video
from vidtok.datasets.frames import resize_video
from vidtok.errors import UserError
from vidtok.eval import CodebookUsage, psnr, ssim
from vidtok.extraction import write_npz
from vidtok.extraction.model import load_tokenizer
from vidtok.extraction.videos import Source, chunk_ids, collect_ids, decode_chunks, encode_chunks
from vidtok.files import validate_local
from vidtok.generator import from_pretrained
from vidtok.generator.run import frames_of
from vidtok.heads import Head
from vidtok.streaming import cut_chunks

FOLDER = "vidtok-demo"

FPS = 30  # of the rendered clip
FRAMES = 129  # maximum per clip, which is held in memory
HEAD = "digits-tokens"
GENERATOR = "clips-prediction"
GIVEN = 2  # latent frames that the generator continues


def run_demo(
    clip: str | Path | None = None,
    output: str | Path = FOLDER,
    *,
    model: str = "vidtok-t",
    device: str = "auto",
    precision: str = "fp32",
    force: bool = False,
) -> Iterator[Mapping[str, object]]:
    """Encode and decode a clip, write the results to a folder, and report quality, cost and speed.

    Args:
        clip: a video, of which the first `FRAMES` frames are used; None, a rendered clip.
        output: folder for tokens.npz, original.mp4, reconstruction.mp4 and picture.png; for a rendered clip also
            actions.mp4 and continuation.mp4.
        model: name of the tokenizer, see `VideoTokenizer.from_pretrained`.
        device: "auto", "cpu", "cuda", ...
        precision: "fp32" or "bf16".
        force: overwrite existing files. In the default folder `FOLDER` they are always overwritten.

    Yields:
        Rows {name: value} to print: quality, cost and speed, and for a rendered clip those of `tell_actions` and
        `continue_clip`.

    Raises:
        UserError: an output file exists, or is the clip itself.
    """
    validate_local(output)
    tokenizer = load_tokenizer(model, device, precision)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("original.mp4", "reconstruction.mp4", "tokens.npz", "picture.png")}
    rendered = [folder / "actions.mp4", folder / "continuation.mp4"] if clip is None else []
    for file in (*files.values(), *rendered):
        if clip is not None and file.exists() and file.samefile(clip):
            raise UserError(f"{clip} would be overwritten by the demo: give another -o DIR")
        if file.exists() and str(output) != FOLDER and not force:
            raise UserError(f"{file} exists: --force overwrites it")
    if clip is None:
        write_video(files["original.mp4"], demo_clip(), FPS)
    size = tokenizer.config.preprocessing["size"]
    with Source(Path(clip or files["original.mp4"]), size, max_frames=FRAMES) as source:
        original = torch.cat(list(source), 2)
    if clip is None:
        original = demo_clip()  # as rendered, without the loss of H.264

    def encode() -> np.ndarray:
        return collect_ids(encode_chunks(tokenizer, [original], None), tokenizer.bits)

    def decode() -> Tensor:
        chunks = decode_chunks(tokenizer, chunk_ids(ids), None)
        return torch.cat(list(cut_chunks(chunks, meta.frames, meta.size)), 2).cpu()

    ids, encode_seconds = _timed(encode)
    record = source.record(tokenizer, ids, precision, None)
    meta = record.meta
    decoded, decode_seconds = _timed(decode)
    if clip is not None:
        write_video(files["original.mp4"], original, meta.fps)
    write_video(files["reconstruction.mp4"], decoded, meta.fps)
    write_npz(files["tokens.npz"], [record])

    usage = CodebookUsage(round(2**tokenizer.bits))
    usage.update(torch.from_numpy(ids.astype("int64")))
    quality = psnr(original, decoded).item()
    rate = tokenizer.bits * ids.size / original[0, 0].numel()
    caption = f"{meta.model}: {quality:.1f} dB at {rate:.3f} bits per pixel"
    draw_picture(files["picture.png"], original, decoded, ids, tokenizer, caption)
    yield {
        "clip": f"{clip or 'rendered'}, {meta.frames} frames, {meta.size[0]} x {meta.size[1]}",
        "tokenizer": f"{meta.model}, weights {meta.weight_hash}, {precision} on {tokenizer.device}",
        "tokens": " x ".join(map(str, ids.shape)) + f" = {ids.size}",
        "PSNR": f"{quality:.2f} dB",
        "SSIM": f"{ssim(original, decoded).item():.4f}",
        "bits per pixel": f"{rate:.4f}",
        "codebook": f"{usage.distinct} codes used, {usage.entropy_bits:.2f} bits of entropy",
        "encode": f"{meta.frames / encode_seconds:.0f} frames/s",
        "decode": f"{meta.frames / decode_seconds:.0f} frames/s",
        **files,
    }
    if clip is None:
        actions, continuation = rendered
        yield tell_actions(tokenizer, actions)
        yield continue_clip(tokenizer, original, continuation)


def tell_actions(tokenizer, file: Path) -> dict[str, str]:
    """Classify the nine motions of the first validation digit from their tokens, and write the clips to a video.

    Args:
        tokenizer: encodes the clips.
        file: the video to write, a grid of 3 x 3 clips.

    Returns:
        {name: text} to print: a summary, then the predicted class and its probability for each true class.
    """
    head = Head.from_pretrained(HEAD, tokenizer.device)
    protocol, classes, source = head.config.protocol, head.config.classes, head.config.tokenizer
    assert protocol and classes and source  # a shipped head states all of them
    digits = MovingDigits("val", protocol["frames"], protocol["size"])
    samples = [digits[i] for i in range(len(digits.classes))]
    video = torch.cat([sample.video for sample in samples])
    rows = [torch.cat(list(video[i : i + 3]), -1) for i in range(0, len(video), 3)]
    write_video(file, torch.cat(rows, -2)[None], digits.fps)
    if source["weight_hash"] != tokenizer.weight_hash:
        return {"actions": f"head {HEAD} reads tokens of {source['name']}, not of this model"}
    with torch.no_grad():
        probabilities = head(tokenizer.encode(video)).softmax(1)
    truth = [digits.classes[sample.label] for sample in samples]
    told = [(classes[i], p) for p, i in zip(*(x.tolist() for x in probabilities.max(1)), strict=True)]
    right = sum(name == label for name, (label, _) in zip(truth, told, strict=True))
    about = f"a held-out digit in {len(truth)} motions, told by head {HEAD} from {head.config.input['kind']}"
    return {"action": f"{about}: {right} right, {file}"} | {
        f"  {name}": f"{label} ({p:.0%})" for name, (label, p) in zip(truth, told, strict=True)
    }


def continue_clip(tokenizer, video_BCTHW: Tensor, file: Path) -> dict[str, str]:
    """Continue the first 5 frames of a clip with generated ones, and write a video: the clip, and beside it its
    reconstruction, whose later frames are generated.

    Args:
        tokenizer: encodes and decodes the clip.
        video_BCTHW: float [1, 3, T, H, W] in [-1, 1]. It is resized to the size of the generator's clips.
        file: the video to write.

    Returns:
        {name: text} to print.
    """
    generator = from_pretrained(GENERATOR, tokenizer.device)
    config, (s_t, s_h, s_w) = generator.config, generator.config.stride
    file.unlink(missing_ok=True)  # that of an earlier demo
    if config.weight_hash != tokenizer.weight_hash:
        return {"continuation": f"generator {GENERATOR} makes tokens of {config.tokenizer}, not of this model"}
    (_, h, w), given, frames = config.grid, 1 + s_t * (GIVEN - 1), frames_of(config)
    clip = resize_video(video_BCTHW[0, :, :frames], (s_h * h, s_w * w))[None]
    prefix = tokenizer.encode(clip[:, :, :given])
    start = time.perf_counter()
    # At the defaults, temperature 1 and choice_temperature 4.5, so small a model soon drifts away from the scene.
    ids = generator.generate(1, prefix=prefix, temperature=0.7, choice_temperature=1.0)
    seconds = time.perf_counter() - start
    write_video(file, torch.cat([clip, tokenizer.decode(ids).cpu()], -1), FPS)
    about = f"{frames - given} frames after {given} of {s_h * h} x {s_w * w}, generated by {GENERATOR}"
    return {"continuation": f"{about} in {seconds:.1f} s: {file}"}


def _timed(work):
    """Run `work` twice; return (result, seconds) of the second run, since the first one warms up."""
    work()
    start = time.perf_counter()
    return work(), time.perf_counter() - start


COLUMNS = 6  # maximal number of frames shown
INK = "#333333"


def draw_picture(path: Path, original: Tensor, decoded: Tensor, ids: np.ndarray, tokenizer, caption: str) -> None:
    """Draw original, reconstruction, error and tokens of selected frames as a .png.

    Args:
        path: the file to write.
        original, decoded: float [1, 3, T, H, W] in [-1, 1].
        ids: int [t, h, w], token ids of the padded frames.
        tokenizer: the tokenizer of the ids; its `stride` and `bits` are used.
        caption: a line of text above the frames.
    """
    # Not pyplot, which needs a display backend and keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames = np.unique(np.linspace(0, original.shape[2] - 1, COLUMNS).round().astype(int))
    error = (original - decoded).abs().mean(1, keepdim=True) / 2
    gain = error_gain(error)
    stride, (height, width) = tokenizer.stride, original.shape[3:]
    colors = token_colors(ids, tokenizer.bits).repeat(stride[1], 1).repeat(stride[2], 2)[:, :height, :width]
    rows = [
        ("original", [_pixels(original[0, :, T]) for T in frames]),
        ("reconstruction", [_pixels(decoded[0, :, T]) for T in frames]),
        (f"error\n(x {gain})", [_gray(error[0, :, T] * gain) for T in frames]),
        ("tokens", [colors[-(-T // stride[0])] for T in frames]),
    ]
    left, top, rest, gap = 1.3, 0.75, 0.12, 0.08  # inches: row labels, captions, other margins, gaps between frames
    across = max(1.9, 4.2 / len(frames))  # wide enough for the caption
    down = across * height / width
    size = (
        left + (across + gap) * len(frames) - gap + rest,
        top + (down + gap) * len(rows) - gap + rest,
    )
    figure = Figure(size, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(rows),
        len(frames),
        squeeze=False,
        gridspec_kw={
            "left": left / size[0],
            "right": 1 - rest / size[0],
            "top": 1 - top / size[1],
            "bottom": rest / size[1],
            "wspace": gap / across,
            "hspace": gap / down,
        },
    )
    for (name, pictures), line in zip(rows, axes, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest", aspect="auto")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color="#bbbbbb", linewidth=0.6)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontsize=11, color=INK)
    for axis, T in zip(axes[0], frames, strict=True):
        axis.set_title(f"frame {T}", fontsize=10, color=INK, pad=5)
    figure.text(left / size[0], 1 - 0.16 / size[1], caption, fontsize=11, color=INK, va="top")
    figure.savefig(path, dpi=110)


def error_gain(error: Tensor) -> int:
    """Return the power of two, 1 to 64, that scales the 99th percentile of an error in [0, 1] to between 0.5 and 1."""
    high = np.quantile(error.numpy(), 0.99)
    return int(2 ** np.clip(np.floor(-np.log2(max(high, 1e-6))), 0, 6))


def token_colors(ids: np.ndarray, bits: float) -> np.ndarray:
    """Color ids by a fixed random projection of their bits, [..., 3] in [0, 1]: similar codes have similar colors."""
    places = np.arange(int(np.ceil(bits)))
    signs = (ids[..., None] >> places & 1) * 2.0 - 1
    projection = np.random.default_rng(0).standard_normal((len(places), 3)) / len(places) ** 0.5
    return 1 / (1 + np.exp(-1.8 * signs @ projection))


def _gray(error_1HW: Tensor) -> np.ndarray:
    """Convert an error in [0, 1] to gray [H, W, 3]; white is no error."""
    return (1 - error_1HW.clamp(0, 1)).expand(3, -1, -1).permute(1, 2, 0).numpy()


def _pixels(image_CHW: Tensor) -> np.ndarray:
    return ((image_CHW + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
