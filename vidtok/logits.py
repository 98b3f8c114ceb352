"""MAGVIT's perceptual distance: squared differences of a classifier's logits (MAGVIT-v2's appendix: ResNet-50)."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok.weights import read_state

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for images in [0, 1]


class LogitDistance(nn.Module):
    """Mean squared difference of two images' logits; frozen, differentiable in its inputs.

    Args:
        net: a classifier of timm, such as "resnet50".
        weights: file or URL with its weights under timm's keys (`.safetensors`, or a checkpoint of tensors alone).

    Raises:
        ValueError: for a network that timm doesn't know, or weights of another one.
        FileNotFoundError: no such file, or the download failed.
    """

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
        return super().train(False)  # its batch norms have their statistics

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """RGB images, float [B,3,H,W] in [-1,1] -> [B, classes], at the classifier's 224 x 224."""
        x = F.interpolate(x_BCHW, (224, 224), mode="bilinear", align_corners=False, antialias=True)
        return self.classifier(((x + 1) / 2 - self.mean) / self.std).float()

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Two batches of RGB images, float [B,3,H,W] in [-1,1] -> float32 [B]."""
        return logit_distance(self.logits(x_BCHW), self.logits(y_BCHW))


def logit_distance(x_BK: Tensor, y_BK: Tensor) -> Tensor:
    """Mean over the K logits of the squared difference, [B]."""
    return (x_BK - y_BK).square().mean(1)
