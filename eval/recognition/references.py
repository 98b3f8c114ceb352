"""Frozen networks that others trained with labels: the reference for probes on a tokenizer's features."""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from vidtok.errors import nearest
from vidtok.eval.metrics.i3d import I3D
from vidtok.eval.recognition.inputs import InputEncoder
from vidtok.hub import hash_weights
from vidtok.tokenizer import VideoTokenizer

REFERENCES = {"i3d", "frames"}  # inputs that are no tokenizer's


class FrameBackbone(nn.Module):
    """Features of timm's image classifiers, for each frame on its own.

    Args:
        name: of timm's model, with or without the tag of its weights ("vit_small_patch14_dinov2.lvd142m").
        weights: file of its weights (safetensors or torch); None, timm downloads them.
        pretrained: whether to load weights; False is for tests.

    Raises:
        ValueError: for a name that timm doesn't know, or weights of another network.
        FileNotFoundError: where there is no such file, or timm can't download the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | Path | None = None, pretrained: bool = True):
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
        overlay = None
        if weights is not None:
            if not Path(weights).is_file():
                raise FileNotFoundError(f"no weights at {weights}")
            overlay = {"file": str(weights)}
        try:
            # With the classifier, without which timm would take any file of weights.
            network: Any = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
        except OSError as error:
            message = f"timm can't download the weights of {name}: give a file of them ({error})"
            raise FileNotFoundError(message) from error
        network.reset_classifier(0)
        data = resolve_model_data_config(network)
        self.network, self.size = network.eval().requires_grad_(False), tuple(data["input_size"][1:])
        self.weight_hash = hash_weights(network)
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, video_B3THW: Tensor) -> Tensor:
        """float [B,3,T,H,W] in [-1,1] -> float32 [B,C,T,1,1]. Frames are resized to the size that it was trained on."""
        B = len(video_B3THW)
        frames = video_B3THW.float().transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, self.size, mode="bicubic", antialias=True).clamp(-1, 1)
        features_NC = self.network((frames / 2 + 0.5 - self.mean) / self.std)
        return features_NC.unflatten(0, (B, -1)).transpose(1, 2)[..., None, None]


class ReferenceEncoder:
    """Encode clips with a frozen network, as an `InputEncoder` does with a tokenizer.

    network: an `I3D`, for its features before the classifier, float32 [B,1024,t,1,1], or a `FrameBackbone`. tokenizer:
    where it is given, the network sees its reconstructions.
    """

    def __init__(self, network: I3D | FrameBackbone, tokenizer: VideoTokenizer | None = None):
        self.network, self.tokenizer = network, tokenizer
        self.kind = "i3d" if isinstance(network, I3D) else "frames"
        self.features = network.forward_features if isinstance(network, I3D) else network
        self.prepare = InputEncoder("pixels" if tokenizer is None else "recon", tokenizer)

    def __call__(self, video_B3THW: Tensor) -> Tensor:
        return self.features(self.prepare(video_B3THW).to(next(self.network.parameters()).device))


def make_encoder(
    input: str, tokenizer: VideoTokenizer, i3d: str | None, backbone: str | None, weights: str | None, recon: bool
) -> InputEncoder | ReferenceEncoder:
    """The encoder of an input's name. Raises ValueError for an unknown name, and for a reference without a network."""
    if input not in REFERENCES:
        return InputEncoder(input, tokenizer)
    network: I3D | FrameBackbone
    if input == "frames":
        if backbone is None:
            raise ValueError("input frames needs a backbone: the name of timm's image classifier")
        network = FrameBackbone(backbone, weights)
    else:
        if i3d is None:
            raise ValueError("input i3d needs i3d: the file of its weights")
        network = I3D(i3d)
    return ReferenceEncoder(network.to(tokenizer.device), tokenizer if recon else None)
