"""Agreement of a classifier's predictions for clips and for their reconstructions. No labels are needed.

Result schema "vidtok.agreement/1":

    schema          that string
    classifier      name of the network, weights {file, sha256 (16 hex digits)}; probabilities of an image classifier
                    are means over the frames of a clip
    protocol        as in `vidtok.eval.reconstruction.run`
    n_total, n_used, n_failed, failures [{name, reason}]
    tokenizers      for each tokenizer: name, weight_hash, stride, bits; bits_per_pixel;
      top1            share of clips with the same top-1 class: {value, low, high}, 95 %, Wilson
      top5            share of clips whose top-1 class is in the top 5 of the reconstruction: {value, low, high}
      confidence      mean probability of the original's top-1 class: original, reconstruction, drop {mean, stderr}
    clips           [{name, best: top-1 class of the original, confidence, tokenizers: {name: {best, confidence}}}]
    provenance      git, versions, device, threads, date
    wall_time_s     seconds

Legend: N clips, K classes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.eval.metrics.i3d import I3D, MIN_FRAMES
from vidtok.eval.metrics.intervals import share_of
from vidtok.eval.metrics.reconstruction import bits_per_pixel
from vidtok.eval.recognition.references import BACKBONE
from vidtok.eval.recognition.results import tokenizer_record
from vidtok.eval.reconstruction.run import Clip, clip_protocol, validation_clips
from vidtok.hub import fetch, hash_file
from vidtok.inputs import find_videos
from vidtok.provenance import provenance
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.perceptual import LogitDistance

SCHEMA = "vidtok.agreement/1"


@dataclass(frozen=True)
class Classifier:
    """A frozen network whose predictions for clips are compared.

    Attributes:
        name: its name, for the record. weights: its file or URL. weight_hash: hash of that file.
        probabilities: float [1,3,T,H,W] in [-1,1] -> float [1,K], on the device of the network.
    """

    name: str
    weights: str
    weight_hash: str
    probabilities: Callable[[Tensor], Tensor]

    @classmethod
    def video(cls, weights: str, device: torch.device) -> "Classifier":
        """Load I3D of Kinetics-400."""
        network = I3D(weights).to(device)
        return cls("I3D, Kinetics-400", weights, network.weight_hash, lambda x: network(x).softmax(1))

    @classmethod
    def image(cls, weights: str, device: torch.device) -> "Classifier":
        """Load EfficientNet-Lite0 of ImageNet, whose probabilities are averaged over frames."""
        network = LogitDistance(BACKBONE, weights).to(device)

        def probabilities(x_1CTHW: Tensor) -> Tensor:
            return network.frame_probabilities(x_1CTHW[0]).mean(0, keepdim=True)

        return cls(f"{BACKBONE}, ImageNet", weights, hash_file(fetch(weights)), probabilities)


def agreement(
    inputs: str | Sequence[str],
    i3d: str | None = None,
    efficientnet: str | None = None,
    *,
    model: str | Sequence[str] = "vidtok-t",
    classes: str | None = None,
    device: str = "auto",
    frames: int = 17,
    size: int = 128,
    fps: float | None = None,
    split: str | None = None,
    track: Callable[[Iterator[Clip], int], Iterable[Clip]] = lambda clips, total: clips,
) -> dict:
    """Classify clips and their reconstructions with I3D (Kinetics-400) or EfficientNet-Lite0 (ImageNet).

    Args:
        inputs: one or more videos, folders of videos, or glob patterns. One clip is taken from each file.
        i3d, efficientnet: weights of the classifier, a file or URL; one of the two.
        model: one or more tokenizers: names, folders or hub ids.
        classes: file with the names of the classifier's classes, one per line; None, classes are numbers.
        device: device of all networks.
        frames, size, fps: shape and frame rate of the clips, see `vidtok.eval.validation_clips`.
        split: name of the split, for the record.
        track: called with the clips and their number, returns the clips; for a progress bar.

    Returns:
        A result of schema "vidtok.agreement/1".

    Raises:
        UserError: no video in the inputs.
        ValueError: no clip could be used, the number of names isn't that of the classes, `classes` is no text file,
            clips are too short for I3D, or `i3d` and `efficientnet` are both given or both missing.
    """
    where = pick_device(device)
    if i3d is not None and frames < MIN_FRAMES:
        raise ValueError(f"frames={frames}: I3D sees clips of at least {MIN_FRAMES} frames")
    try:
        names = Path(classes).read_text().splitlines() if classes else None
    except UnicodeDecodeError as error:
        raise ValueError(f"classes={classes}: this is no text file with a name per line") from error
    if i3d is not None and efficientnet is None:
        classifier = Classifier.video(i3d, where)
    elif efficientnet is not None and i3d is None:
        classifier = Classifier.image(efficientnet, where)
    else:
        raise ValueError("give the weights of exactly one classifier: i3d or efficientnet")
    inputs = [inputs] if isinstance(inputs, str) else [str(each) for each in inputs]
    files = [file for file, _ in find_videos(inputs)]
    clips = validation_clips(files, frames, size, fps)
    return evaluate_agreement(
        classifier,
        [VideoTokenizer.from_pretrained(name, where) for name in ([model] if isinstance(model, str) else model)],
        track(clips, len(files)),
        protocol=clip_protocol(" ".join(inputs), split, frames, size, fps),
        classes=names,
        device=where,
    )


@torch.inference_mode()
def evaluate_agreement(
    classifier: Classifier,
    tokenizers: Sequence[VideoTokenizer],
    videos: Iterable[Clip],
    *,
    protocol: Mapping,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> dict:
    """Classify every clip, and its reconstruction by each tokenizer.

    Args:
        classifier, tokenizers: the networks, on `device`.
        videos: (name, float [1,3,T,H,W] in [-1,1]), or (name, exception) for a clip that could not be read.
        protocol: record of the clips, see `clip_protocol`.
        classes: names of the classifier's classes; None, classes are numbers.

    Returns:
        The result described at the top of this file.

    Raises:
        ValueError: no clip could be used, or the number of names isn't that of the classes.
    """
    start = time.perf_counter()
    rows, failures, rates = [], [], {}
    originals: list[Tensor] = []
    others: dict[str, list[Tensor]] = {tokenizer.config.name: [] for tokenizer in tokenizers}
    if len(others) < len(tokenizers):
        raise ValueError("two tokenizers have the same name")
    for name, clip in videos:
        if isinstance(clip, Exception):
            failures.append({"name": name, "reason": str(clip).removeprefix(f"{name}: ")})
            continue
        x = clip.to(device)
        probabilities = classifier.probabilities(x).cpu()
        found = {}
        for tokenizer in tokenizers:
            again = tokenizer.decode(tokenizer.encode(x))
            found[tokenizer.config.name] = classifier.probabilities(again).cpu()
            rates[tokenizer.config.name] = bits_per_pixel(tokenizer.bits, tokenizer.stride, *x.shape[2:])
        if classes is not None and len(classes) != probabilities.shape[1]:
            raise ValueError(f"{len(classes)} class names for {probabilities.shape[1]} classes")
        originals.append(probabilities)
        for other, values in found.items():
            others[other].append(values)
        best = int(probabilities.argmax())
        rows.append(
            {
                "name": name,
                "best": _class(best, classes),
                "confidence": float(probabilities[0, best]),
                "tokenizers": {
                    other: {"best": _class(int(p.argmax()), classes), "confidence": float(p[0, best])}
                    for other, p in found.items()
                },
            }
        )
    if not rows:
        raise ValueError(f"no clip could be used: {failures[0]['name']}: {failures[0]['reason']}")
    original_NK = torch.cat(originals)
    return {
        "schema": SCHEMA,
        "classifier": {
            "name": classifier.name,
            "weights": {"file": classifier.weights, "sha256": classifier.weight_hash},
        },
        "protocol": dict(protocol),
        "n_total": len(rows) + len(failures),
        "n_used": len(rows),
        "n_failed": len(failures),
        "failures": failures,
        "tokenizers": [
            {
                **tokenizer_record(tokenizer),
                "bits_per_pixel": rates[tokenizer.config.name],
                **agreement_shares(original_NK, torch.cat(others[tokenizer.config.name])),
            }
            for tokenizer in tokenizers
        ],
        "clips": rows,
        "provenance": provenance(device),
        "wall_time_s": time.perf_counter() - start,
    }


def agreement_shares(original_NK: Tensor, other_NK: Tensor) -> dict:
    """Compute top1, top5 and confidence (see the top of this file) from the probabilities for N clips."""
    best_N1 = original_NK.argmax(1, keepdim=True)
    five = min(5, other_NK.shape[1])
    same = int((other_NK.argmax(1, keepdim=True) == best_N1).sum())
    among = int((other_NK.topk(five, 1).indices == best_N1).any(1).sum())
    before, after = original_NK.gather(1, best_N1).double(), other_NK.gather(1, best_N1).double()
    drop, n = before - after, len(best_N1)
    return {
        "top1": share_of(same, n),
        "top5": share_of(among, n),
        "confidence": {
            "original": float(before.mean()),
            "reconstruction": float(after.mean()),
            "drop": {"mean": float(drop.mean()), "stderr": float(drop.std() / n**0.5) if n > 1 else None},
        },
    }


def format_agreement(result: Mapping) -> str:
    """Format the result as a few lines for a terminal."""
    protocol = result["protocol"]
    lines = [
        f"{result['classifier']['name']} on {protocol['source']} ({protocol['crop']}, fps {protocol['fps']})",
        f"{result['n_used']} of {result['n_total']} clips used, {result['n_failed']} failed",
        "",
        f"{'':<16}{'bits/pixel':>11}{'top-1':>8}{'95 %':>16}{'top-5':>8}{'confidence':>13}{'drop':>18}",
    ]
    for row in result["tokenizers"]:
        top1, drop = row["top1"], row["confidence"]["drop"]
        stderr = "" if drop["stderr"] is None else f" +- {drop['stderr']:.3f}"
        interval = f"{100 * top1['low']:.1f} - {100 * top1['high']:.1f}"
        lines.append(
            f"{row['name']:<16}{row['bits_per_pixel']:>11.4f}{100 * top1['value']:>8.1f}{interval:>16}"
            f"{100 * row['top5']['value']:>8.1f}{row['confidence']['original']:>13.3f}{drop['mean']:>10.3f}{stderr}"
        )
    lines += [f"failed: {failure['name']}: {failure['reason']}" for failure in result["failures"]]
    return "\n".join(lines)


def _class(number: int, classes: Sequence[str] | None) -> str | int:
    return number if classes is None else classes[number]
