"""Perceptual distances between images: LPIPS, and squared differences of a classifier's logits.

LPIPS (Zhang et al. 2018, arXiv:1801.03924, version 0.1): features of a frozen classifier are normalized to unit length
at every position. Their squared differences are weighted by channel ("linear heads", fitted to human judgments),
averaged over space and summed over five layers. The heads are those in torchmetrics, a dependency of vidtok. The
classifier's convolutions (torchvision's ImageNet VGG16 or AlexNet) are read from a local file or downloaded once by
torch.hub.

The distance of logits is that of MAGVIT (MAGVIT-v2, appendix: ResNet-50).

Legend: B batch, C channels, T time, H height, W width, K classes.
"""

import warnings
from importlib.resources import as_file, files
from pathlib import Path

import timm
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model

from vidtok.errors import nearest
from vidtok.hub import read_state

# Model of torchvision, and the layers of its `features` whose activations LPIPS compares: in VGG16 the ReLU before
# each pooling, in AlexNet every ReLU.
_BACKBONES = {"vgg": ("vgg16", (3, 8, 15, 22, 29)), "alex": ("alexnet", (1, 4, 7, 9, 11))}
_URLS = {
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
# Mean and standard deviation of ImageNet, converted from [0,1] to [-1,1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """LPIPS v0.1 with frozen weights, differentiable in its inputs.

    Args:
        net: "vgg" (the paper's loss, and MAGVIT's metric) or "alex" (the default metric of the LPIPS authors). Values
            of the two are not comparable: always state which one was used.
        weights: file or URL with the classifier's convolutions under torchvision's keys `features.N.weight|bias`
            (`.safetensors`, or a torchvision `.pth`; further keys are ignored). None downloads torchvision's file
            (VGG16 553 MB, AlexNet 244 MB) into the torch.hub cache.

    Raises:
        ValueError: unknown `net`, or a file that lacks some of the convolutions.
        FileNotFoundError: no such file, or the download failed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "vgg", weights: str | Path | None = None):
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"unknown LPIPS network {net!r}; legal: {', '.join(_BACKBONES)}")
        self.net = net
        self.features, self.taps = _build_features(net)
        _load_convolutions(self.features, net, weights)
        for layer, head_C in enumerate(_read_heads(net)):
            self.register_buffer(f"head{layer}", head_C)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Compute the distance of two batches of RGB images, float [B,3,H,W] in [-1,1] -> float32 [B], 0 if equal.

        Raises:
            ValueError: shapes that differ or are not [B,3,H,W], or integer images.
        """
        return self._distances(x_BCHW, y_BCHW, gram=False)[0]

    def with_gram(self, x_BCHW: Tensor, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute LPIPS and the Gram distance of two batches of images in one pass -> float32 [B] each (see `forward`).

        The Gram distance is the style loss of Gatys et al. 2016 ("Image Style Transfer Using Convolutional Neural
        Networks", eq. 3-5): channel products F F^T of the activations F [C,H*W] at each of LPIPS' five layers, divided
        by C*H*W; the squared differences of two images, summed over channel pairs and divided by 4; mean over layers.
        AToken (arXiv:2509.14476) trains with it beside LPIPS, in place of an adversary.
        """
        return self._distances(x_BCHW, y_BCHW, gram=True)

    def _distances(self, x_BCHW: Tensor, y_BCHW: Tensor, gram: bool) -> tuple[Tensor, Tensor]:
        if x_BCHW.shape != y_BCHW.shape or x_BCHW.ndim != 4 or x_BCHW.shape[1] != 3:
            raise ValueError(
                f"LPIPS compares two tensors of one shape [B,3,H,W], got {[*x_BCHW.shape]} and {[*y_BCHW.shape]}"
            )
        if not (x_BCHW.is_floating_point() and y_BCHW.is_floating_point()):
            raise ValueError(f"LPIPS takes floats in [-1,1], got {x_BCHW.dtype} and {y_BCHW.dtype}")
        x_BCHW, y_BCHW = ((v - self.shift) / self.scale for v in (x_BCHW, y_BCHW))
        distance_B = torch.zeros(len(x_BCHW), device=x_BCHW.device)
        gram_B = torch.zeros_like(distance_B)
        head = 0
        for index, layer in enumerate(self.features):
            x_BCHW, y_BCHW = layer(x_BCHW), layer(y_BCHW)
            if index in self.taps:
                head_C = getattr(self, f"head{head}")
                difference_BCHW = (_unit_length(x_BCHW) - _unit_length(y_BCHW)).square()
                distance_B = distance_B + difference_BCHW.mean((2, 3)) @ head_C
                if gram:
                    difference_BCC = _gram_matrix(x_BCHW) - _gram_matrix(y_BCHW)
                    gram_B = gram_B + difference_BCC.square().sum((1, 2)) / (4 * len(self.taps))
                head += 1
        return distance_B, gram_B

    def for_video(self, x_BCTHW: Tensor, y_BCTHW: Tensor) -> Tensor:
        """Compute the mean LPIPS over the frames of clips, float [B,3,T,H,W] in [-1,1] -> float32 [B].

        Raises:
            ValueError: shapes that differ or are not [B,3,T,H,W].
        """
        if x_BCTHW.shape != y_BCTHW.shape or x_BCTHW.ndim != 5:
            raise ValueError(
                f"LPIPS compares two clips of one shape [B,3,T,H,W], got {[*x_BCTHW.shape]} and {[*y_BCTHW.shape]}"
            )
        # Frame by frame: VGG's first activations take 64/3 of the clip's own memory each.
        frames = zip(x_BCTHW.unbind(2), y_BCTHW.unbind(2), strict=True)
        return torch.stack([self(x_BCHW, y_BCHW) for x_BCHW, y_BCHW in frames]).mean(0)


def _unit_length(x_BCHW: Tensor) -> Tensor:
    # float32: the squares of VGG activations overflow float16. The epsilon is inside the root, where it keeps the
    # gradient finite at positions whose activations are all zero.
    x_BCHW = x_BCHW.float()
    return x_BCHW * (x_BCHW.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def _gram_matrix(x_BCHW: Tensor) -> Tensor:
    """Compute the products of channels, summed over positions and divided by C*H*W -> float32 [B,C,C]."""
    # Without autocast, since sums of products overflow float16.
    with torch.autocast(x_BCHW.device.type, enabled=False):
        x_BCN = x_BCHW.float().flatten(2)
        return x_BCN @ x_BCN.mT / x_BCHW[0].numel()


def _build_features(net: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Build the layers of LPIPS without weights; return them and the indices of the layers that it compares."""
    name, taps = _BACKBONES[net]
    with torch.device("meta"):  # the classifier's large linear layers are never allocated
        features = get_model(name).features[: taps[-1] + 1]
    return features, taps


def _load_convolutions(features: nn.Sequential, net: str, weights: str | Path | None) -> None:
    try:
        state = read_state(_URLS[net] if weights is None else weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; LPIPS takes torchvision's {_URLS[net]} as weights=PATH") from error
    wanted = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    wrong = [name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape]
    if wrong:
        raise ValueError(f"{weights} does not hold the convolutions of {net!r}: missing or misshapen {wrong[0]}")
    values = {name.removeprefix("features."): state[name].float() for name in wanted}
    features.load_state_dict(values, assign=True)  # the network has no memory of its own yet


def _read_heads(net: str) -> list[Tensor]:
    with as_file(files("torchmetrics.functional.image") / "lpips_models" / f"{net}.pth") as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{layer}.model.1.weight"].flatten() for layer in range(5)]


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet statistics of images in [0, 1]


class LogitDistance(nn.Module):
    """Mean squared difference of two images' logits by a frozen classifier, differentiable in its inputs.

    Args:
        net: a classifier of timm, such as "resnet50".
        weights: file or URL with its weights under timm's keys (`.safetensors`, or a checkpoint of tensors alone).

    Raises:
        ValueError: a network that timm doesn't have, or weights of another network.
        FileNotFoundError: no such file, or the download failed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: str, weights: str | Path):
        super().__init__()
        if not timm.is_model(net):
            raise ValueError(f"timm has no classifier {net!r}; the perceptual networks beside them are vgg and alex")
        self.net = net
        self.classifier = timm.create_model(net)
        try:
            self.classifier.load_state_dict(read_state(weights))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{weights} does not hold the weights of {net!r}: {reason}") from error
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LogitDistance":
        return super().train(False)  # its batch norms keep their statistics

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Compute the logits of RGB images, float [B,3,H,W] in [-1,1], resized to 224 x 224 -> float32 [B, K]."""
        x = F.interpolate(x_BCHW, (224, 224), mode="bilinear", align_corners=False, antialias=True)
        return self.classifier(((x + 1) / 2 - self.mean) / self.std).float()

    def frame_probabilities(self, x_CTHW: Tensor) -> Tensor:
        """Compute the class probabilities of every frame of a clip, float [3,T,H,W] in [-1,1] -> float32 [T, K]."""
        # Few frames at a time, because activations of a whole clip would fill the memory.
        return torch.cat([self.logits(part).softmax(1) for part in x_CTHW.transpose(0, 1).split(8)])

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Compute the distance of two batches of RGB images, float [B,3,H,W] in [-1,1] -> float32 [B]."""
        return logit_distance(self.logits(x_BCHW), self.logits(y_BCHW))


def logit_distance(x_BK: Tensor, y_BK: Tensor) -> Tensor:
    """Compute the mean over the K logits of the squared difference -> [B]."""
    return (x_BK - y_BK).square().mean(1)


def build_perceptual(cfg: DictConfig) -> "LPIPS | LogitDistance | None":
    """Build the perceptual distance of a config.

    Returns:
        The distance, or None if the loss weights of both of its terms are 0. Also None, with a warning, if no weights
        of its network are given.
    """

    if cfg.loss.perceptual == 0 and cfg.loss.gram == 0:
        return None
    kinds = {"lpips": LPIPS, "logits": LogitDistance}
    if cfg.perceptual not in kinds:
        raise ValueError(f"unknown perceptual distance {cfg.perceptual!r}: {nearest(cfg.perceptual, kinds)}")
    if cfg.loss.gram != 0 and cfg.perceptual != "lpips":
        raise ValueError(f"loss.gram={cfg.loss.gram} compares features of LPIPS' network: set perceptual=lpips")
    net, weights = cfg[cfg.perceptual].net, cfg[cfg.perceptual].weights
    if weights is None:
        terms = "the perceptual term" + (" and the Gram term" if cfg.loss.gram else "")
        message = f"no {cfg.perceptual}.weights=FILE (or URL): training without {terms}"
        warnings.warn(message, stacklevel=2)
        return None
    if weights == "download" and cfg.perceptual == "lpips":
        weights = None  # LPIPS knows the URL of torchvision's file
    return kinds[cfg.perceptual](net, weights)
