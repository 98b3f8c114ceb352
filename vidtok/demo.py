"""What `vidtok demo` shows: actions told from tokens, and a picture of what a tokenizer does."""

import time
from pathlib import Path

import numpy as np
from torch import Tensor

FRAMES = 129  # of a clip at most: it is held in memory
HEAD = "digits-tokens"


def tell_actions(tokenizer, file: Path) -> dict[str, str]:
    """The first held-out digit in all its motions, seen as tokens: a row for each, truth and what the head says.

    file: gets the clips, three by three.
    """
    import torch

    from vidtok.datasets import MovingDigits, write_video
    from vidtok.heads import Head

    head = Head.from_pretrained(HEAD, tokenizer.device)
    protocol, classes = head.config.protocol, head.config.classes
    digits = MovingDigits("val", protocol["frames"], protocol["size"])
    samples = [digits[i] for i in range(len(digits.classes))]
    video = torch.cat([sample.video for sample in samples])
    rows = [torch.cat(list(video[i : i + 3]), -1) for i in range(0, len(video), 3)]
    write_video(file, torch.cat(rows, -2)[None], digits.fps)
    if head.config.tokenizer["weight_hash"] != tokenizer.weight_hash:
        return {"actions": f"head {HEAD} reads tokens of {head.config.tokenizer['name']}, not of this model"}
    with torch.no_grad():
        probabilities = head(tokenizer.encode(video)).softmax(1)
    truth = [digits.classes[sample.label] for sample in samples]
    told = [(classes[i], p) for p, i in zip(*(x.tolist() for x in probabilities.max(1)), strict=True)]
    right = sum(name == label for name, (label, _) in zip(truth, told, strict=True))
    about = f"a held-out digit in {len(truth)} motions, told by head {HEAD} from {head.config.input['kind']}"
    return {"action": f"{about}: {right} right"} | {
        f"  {name}": f"{label} ({p:.0%})" for name, (label, p) in zip(truth, told, strict=True)
    }


def _timed(work):
    """(its result, seconds) of the second of two runs: the first one warms up."""
    work()
    start = time.perf_counter()
    return work(), time.perf_counter() - start


COLUMNS = 6  # frames shown at most
INK = "#333333"


def draw_picture(path: Path, original: Tensor, decoded: Tensor, ids: np.ndarray, tokenizer, caption: str) -> None:
    """Writes a .png.

    Args:
        original, decoded: float [1, 3, T, H, W] in [-1, 1].
        ids: [t, h, w], of the padded frames.
        tokenizer: has the `stride` and the `bits` of the ids.
        caption: a line above it all.
    """
    # Not pyplot: no window system is asked, no global state is left.
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
    left, top, rest, gap = 1.3, 0.75, 0.12, 0.08  # inches: the row labels, the lines above, the other edges, between
    across = max(1.9, 4.2 / len(frames))  # room for the caption
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
    """The power of two by which an error in [0, 1] fills the range: its 99th percentile comes to 0.5 to 1."""
    high = np.quantile(error.numpy(), 0.99)
    return int(2 ** np.clip(np.floor(-np.log2(max(high, 1e-6))), 0, 6))


def token_colors(ids: np.ndarray, bits: float) -> np.ndarray:
    """Colours [..., 3] in [0, 1]: the bits as signs, by a fixed projection, so that few bits apart look alike."""
    places = np.arange(int(np.ceil(bits)))
    signs = (ids[..., None] >> places & 1) * 2.0 - 1
    projection = np.random.default_rng(0).standard_normal((len(places), 3)) / len(places) ** 0.5
    return 1 / (1 + np.exp(-1.8 * signs @ projection))


def _gray(error_1HW: Tensor) -> np.ndarray:
    """White where there is none."""
    return (1 - error_1HW.clamp(0, 1)).expand(3, -1, -1).permute(1, 2, 0).numpy()


def _pixels(image_CHW: Tensor) -> np.ndarray:
    return ((image_CHW + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
