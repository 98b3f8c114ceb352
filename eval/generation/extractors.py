"""Networks that score generated clips: I3D for FVD, Inception for FID, a recognition head for FRD and agreement.

Legend: B batch, N clips, K classes, t h w token grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vidtok.eval.generation.conventions import Features
from vidtok.eval.metrics.i3d import I3D, fast_i3d
from vidtok.eval.metrics.inception import InceptionFID
from vidtok.eval.metrics.intervals import share_of
from vidtok.heads import Head
from vidtok.hub import hash_weights
from vidtok.tokenizer import VideoTokenizer, check_precision


@dataclass
class FeatureExtractors:
    """Networks of the metrics; metrics whose network is None are left out.

    Attributes:
        fvd: maps clips [B, 3, T, H, W] to features. fid: maps frames [N, 3, H, W] to features.
        head: recognition head on tokens, codes or pixels.
        names: metric -> description of its network, for the record.
    """

    fvd: Features | None = None
    fid: Features | None = None
    head: Head | None = None
    names: dict[str, str] = field(default_factory=dict)


class HeadFeatures:
    """Features of a recognition head for FRD, the Fréchet distance of a recognizer: the input of its last layer.

    Args:
        head: head on tokens, codes or pixels.

    Attributes:
        reads_pixels: whether it sees clips; otherwise it sees their tokens.
    """

    def __init__(self, head: Head):
        self.head = head
        self.reads_pixels = head.config.input["kind"] == "pixels"

    def __call__(self, video_BCTHW: Tensor | None, ids_Bthw: Tensor | None) -> Tensor:
        """Compute float features [B, D] of clips in [-1, 1], or of their tokens, int64 [B, t, h, w]."""
        x = video_BCTHW if self.reads_pixels else ids_Bthw
        assert x is not None, "a head on pixels sees clips, others tokens"
        return self.head.forward_head(self.head.forward_features(x), pre_logits=True).float()


class ClassAgreement:
    """Class agreement: the share of generated clips for which a head predicts the requested class.

    Args:
        head: head on tokens or codes, or on pixels, whose inputs are the decoded clips.
        classes: class names in order.
        tokenizer: tokenizer of the generator.

    Raises:
        ValueError: the head doesn't know one of the classes, or has another input.
    """

    def __init__(self, head: Head, classes: Sequence[str], tokenizer: VideoTokenizer):
        self.head, self.tokenizer, self.classes = head, tokenizer, list(classes)
        self.right_K, self.n_K = torch.zeros(2, len(self.classes), dtype=torch.long)
        self.input = head.config.input["kind"]
        if self.input not in ("tokens", "codes", "pixels"):
            raise ValueError(f"the head {head.config.name!r} reads {self.input}: give one of tokens, codes or pixels")
        head.validate_uncropped()
        # Without names, the classes of both are taken to have the same order.
        own = list(classes if head.config.classes is None else head.config.classes)
        if missing := [name for name in classes if name not in own]:
            raise ValueError(f"the head {head.config.name!r} knows no class {missing[0]!r}")
        self.numbers_K = torch.tensor([own.index(name) for name in classes], dtype=torch.long)

    def update(self, ids_Bthw: Tensor, label_B: Tensor) -> None:
        """Add int64 ids and the class numbers that they were generated for (on the CPU); -1, no class, is skipped."""
        ids_Bthw, label_B = ids_Bthw[label_B >= 0], label_B[label_B >= 0]
        if not len(label_B):
            return
        with torch.inference_mode():
            x = self.tokenizer.decode(ids_Bthw) if self.input == "pixels" else ids_Bthw
            seen = self.head(x).argmax(1).cpu()
        self.right_K += label_B[seen == self.numbers_K[label_B]].bincount(minlength=len(self.classes))
        self.n_K += label_B.bincount(minlength=len(self.classes))

    @property
    def n(self) -> int:
        return int(self.n_K.sum())

    def agreement(self) -> dict:
        """Return {value, low, high (Wilson, 95 %), n, classes: {name: share of its clips}}."""
        counts = zip(self.classes, self.right_K.tolist(), self.n_K.tolist(), strict=True)
        classes = {name: right / n for name, right, n in counts if n}
        return {**share_of(int(self.right_K.sum()), self.n), "n": self.n, "classes": classes}


def predict_classes(head: Head, ids_Bthw: Tensor, video_BCTHW: Tensor, classes: Sequence[str]) -> list[str]:
    """Return the name of the class that a head predicts for each clip.

    Args:
        head: head on tokens, codes or pixels.
        ids_Bthw: int64 tokens. video_BCTHW: the clips that they decode to.
        classes: class names in the order of a head that has no names.
    """
    with torch.inference_mode():
        number_B = head(video_BCTHW if head.config.input["kind"] == "pixels" else ids_Bthw).argmax(1)
    names = classes if head.config.classes is None else head.config.classes
    return [names[number] for number in number_B.tolist()]


def load_head(name: str, tokenizer: VideoTokenizer, device: torch.device) -> Head:
    """Load a recognition head that sees generated clips.

    Raises:
        ValueError: the head is not found, has no classes, or reads the output of another tokenizer.
    """
    head = Head.from_pretrained(name, device).eval()
    head.check_classes()
    head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
    return head


def in_bf16(network: torch.nn.Module, video_BCTHW: Tensor) -> Tensor:
    """Run a network in bf16 and return float32."""
    with torch.autocast(video_BCTHW.device.type, torch.bfloat16):
        return network(video_BCTHW).float()


def load_feature_extractors(
    i3d: str | None,
    fid: str | None,
    head: str | None,
    tokenizer: VideoTokenizer,
    device: torch.device,
    precision: str = "fp32",
) -> FeatureExtractors:
    """Load the networks of the metrics from weight files or URLs, and the head; None leaves a network out.

    precision: precision of I3D, "fp32" or "bf16"; recorded in `FeatureExtractors.names`.

    Raises:
        ValueError: an unknown precision, or one without I3D; see also `load_head`.
    """
    check_precision(precision)
    if precision != "fp32" and not i3d:
        raise ValueError(f"precision={precision} is for I3D: give i3d, or leave it out")
    found = FeatureExtractors()
    if i3d:
        is_fast = precision == "bf16"
        network = (fast_i3d if is_fast else I3D)(i3d).to(device)
        found.fvd = partial(in_bf16, network) if is_fast else network
        suffix = ", in bf16" if is_fast else ""
        found.names["fvd"] = f"I3D Kinetics-400 logits, weights {network.weight_hash}{suffix}"
    if fid:
        found.fid = InceptionFID(fid).to(device)
        found.names["fid"] = f"Inception of 2015-12-05, pooled features, weights {hash_weights(found.fid)}"
    if head:
        found.head = load_head(head, tokenizer, device)
        found.names["agreement"] = f"{found.head.config.name}, weights {found.head.weight_hash}"
    return found
