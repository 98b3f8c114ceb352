"""Train a tokenizer: MAGVIT-v2's objective, and reconstructions of fixed clips to watch it.

The held-out clips by which a person sees how a run goes.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.utils import make_grid

from vidtok.checks import check_video
from vidtok.configs.compose import to_dict
from vidtok.datasets import MovingDigits, read_video, validate_disjoint
from vidtok.datasets.sources import find_media
from vidtok.errors import nearest
from vidtok.eval.metrics.reconstruction import block_edges
from vidtok.names import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from vidtok.nets.discriminator import Discriminator
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer, build_tokenizer
from vidtok.train import losses
from vidtok.train.loop import build_schedule
from vidtok.train.losses import (
    LossWeights,
    as_images,
    block_edge_loss,
    choose_frames,
    perceptual_and_gram_loss,
    perceptual_loss,
    reconstruction_loss,
)
from vidtok.train.perceptual import LPIPS, LogitDistance, build_perceptual
from vidtok.train.run_folder import Branch, RunFolder, read_branch, start_branch, validate_branch
from vidtok.train.state import build_state, unwrap_model
from vidtok.train.task import AdversarialTask

if TYPE_CHECKING:
    from vidtok.datasets import ClipFolder, DigitClips
    from vidtok.train.semantic import SemanticLoss

BIT = math.log(2)  # nats


class TokenizerTask(AdversarialTask):
    """Batches are clips, float32 [B, 3, T, H, W] in [-1, 1].

    All terms are means over clips but one: LFQ's codebook entropy is a function of all tokens together. It is that of
    all processes' tokens, and with accumulated gradients the mean over the parts, each of which shows fewer codes.

    Args:
        weights: of the terms.
        perceptual: the distance of the perceptual term, needed where its weight isn't 0; LPIPS where the weight of the
            Gram term isn't 0.
        fixed_clips: [1, 3, T, H, W] each, of one or more sizes; PSNR, block edges and pictures of them show how the run
            goes. May be empty.
        semantic: the semantic term; the model is then a `SemanticTokenizer`.
    """

    def __init__(
        self,
        weights: LossWeights,
        perceptual: LPIPS | LogitDistance | None = None,
        fixed_clips: Sequence[Tensor] = (),
        semantic: "SemanticLoss | None" = None,
    ):
        self.weights, self.perceptual, self.semantic = weights, perceptual, semantic
        self.fixed_clips, self.logit_decay = fixed_clips, weights.lecam_decay

    def is_adversarial_step(self, step: int) -> bool:
        return self.weights.adversarial > 0 and step >= self.weights.adversarial_start

    def terms(
        self, model: nn.Module, batch: Tensor, step: int, discriminator: nn.Module | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        decoded, z, codes, *predicted = model(batch)
        tokenizer = tokenizer_of(unwrap_model(model))
        quantizer = tokenizer.quantizer
        terms = {"reconstruction": reconstruction_loss(decoded, batch), **quantizer.losses(z, codes)}
        terms["usage_bits"] = usage_bits(quantizer.codes_to_ids(codes.detach()))
        terms["explained"] = 1 - terms["reconstruction"].detach() / batch.var().clamp_min(1e-6)
        if self.weights.block_edges:
            terms["block_edges"] = block_edge_loss(decoded, batch, tokenizer.stride)
        if self.perceptual is not None:
            frames = torch.Generator().manual_seed(step)
            distance = self.perceptual.to(batch.device)
            looked_at = (decoded, batch, self.weights.perceptual_frames, frames)
            if self.weights.gram:
                terms["perceptual"], terms["gram"] = perceptual_and_gram_loss(cast(LPIPS, distance), *looked_at)
            else:
                terms["perceptual"] = perceptual_loss(distance, *looked_at)
        if discriminator is not None and self.is_adversarial_step(step):
            discriminator.requires_grad_(False)  # nothing here is for it to learn from
            terms["adversarial"] = losses.generator_loss(discriminator(self._judged(decoded, step)))
            discriminator.requires_grad_(True)
        total = self.weights.total(terms, step)
        if self.semantic is not None:
            reconstruction = self.weights.reconstruction * terms["reconstruction"]
            weighted, found = self.semantic(batch, predicted, reconstruction, codes, self.weights.semantic_ratio)
            total, terms = total + weighted, terms | found
        return total, terms, decoded.detach()

    def _judged(self, video: Tensor, step: int) -> Tensor:
        """Return what the discriminator sees of clips: all, or random frames as images [B n, 3, 1, H, W]."""
        if not self.weights.adversarial_frames:
            return video
        chosen = choose_frames(video.shape[2], self.weights.adversarial_frames, torch.Generator().manual_seed(step))
        return as_images(video, chosen).unsqueeze(2)

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Tensor, aux: Tensor, lecam_ema: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        real = self._judged(batch, step).requires_grad_(self.weights.r1 > 0)
        real_logits, fake_logits = discriminator(torch.cat([real, self._judged(aux, step)])).chunk(2)
        terms = {
            "discriminator": losses.discriminator_loss(real_logits, fake_logits),
            "lecam": losses.lecam_penalty(real_logits, fake_logits, lecam_ema),
            "discriminator_accuracy": losses.accuracy(real_logits, fake_logits),
            "real_logit": real_logits.detach().mean(),
            "fake_logit": fake_logits.detach().mean(),
        }
        if self.weights.r1 > 0:
            with torch.autocast(batch.device.type, enabled=False):
                terms["r1"] = losses.r1_penalty(real_logits, real)
        return self.weights.discriminator_total(terms), terms

    def validate(self, model: nn.Module, run: RunFolder, step: int) -> str | None:
        """Measure the fixed clips, and draw the first four of each size.

        Scalars: `validation_psnr` (peak 2, mean over clips) and `validation_block_ratio` (see `block_edges`; left out
        for stride 1). With clips of several sizes, every name ends in `_<size>`.
        """
        sizes = sorted({clip.shape[-1] for clip in self.fixed_clips})
        lines = []
        for size in sizes:
            suffix = f"_{size}" if len(sizes) > 1 else ""
            clips = [clip for clip in self.fixed_clips if clip.shape[-1] == size]
            lines.append(self._validate(clips, suffix, tokenizer_of(model), run, step))
        return "; ".join(lines) or None

    def _validate(self, clips: list[Tensor], suffix: str, model: VideoTokenizer, run: RunFolder, step: int) -> str:
        shown: list[Tensor] = []
        psnr, block_ratio = [], []
        for clip in clips:  # one at a time: large frames take much memory
            decoded = model.decode(model.encode(clip)).cpu()
            psnr.append(10 * math.log10(4 / max(reconstruction_loss(decoded, clip).item(), 1e-12)))
            if (edges := block_edges(clip, decoded, model.stride)) is not None:
                block_ratio.append(edges[0].item())
            if len(shown) < 4:
                shown.append(decoded)
        measured = {"psnr": psnr, "block_ratio": block_ratio}
        means = {name: sum(values) / len(values) for name, values in measured.items() if values}
        run.save_scalars({f"validation_{name}{suffix}": mean for name, mean in means.items()}, step)
        image = comparison(torch.cat(clips[:4]), torch.cat(shown))
        picture = run.save_picture(f"reconstruction{suffix}", image, step)
        ratio = f", block ratio {means['block_ratio']:.3f}," if block_ratio else ""
        return f"validation{suffix} {means['psnr']:.2f} dB{ratio} on {len(clips)} fixed clips, {picture}"

    def progress(self, scalars: dict[str, float]) -> str:
        parts = [f"l2 {scalars['reconstruction']:.4f}"]
        semantic = ("semantic_pooled", "semantic_cells")
        for name in ("perceptual", "gram", *semantic, "commitment", "adversarial", "discriminator"):
            if name in scalars:
                parts.append(f"{name} {scalars[name]:.4f}")
        if "discriminator_accuracy" in scalars:
            parts.append(f"accuracy {scalars['discriminator_accuracy']:.2f}")
        if "entropy" in scalars:
            token, codebook = scalars["entropy_per_sample"] / BIT, scalars["entropy_codebook"] / BIT
            parts.append(f"bits: token {token:.2f}, codebook {codebook:.2f}")
        parts.append(f"used {scalars['usage_bits']:.2f}")
        if scalars["usage_bits"] < 1:
            parts.append("COLLAPSE: nearly all tokens have one code; raise loss.entropy or lower the learning rate")
        return "  ".join(parts)


def tokenizer_of(model: nn.Module) -> VideoTokenizer:
    """Return the tokenizer of a model in training: the model itself, or that of a `SemanticTokenizer`."""
    return cast(VideoTokenizer, getattr(model, "tokenizer", model))


def usage_bits(ids: Tensor) -> Tensor:
    """Entropy in bits of the ids in a batch: 0 where all tokens have one code, log2 N where all N are different."""
    # Not `unique`, for which a GPU must be waited for in the middle of every step.
    ids = ids.flatten().sort().values
    codes = F.pad((ids.diff() != 0).cumsum(0), (1, 0))  # 0, 1, ...: which of the codes used
    counts = torch.zeros(len(ids), device=ids.device).scatter_add_(0, codes, torch.ones(len(ids), device=ids.device))
    return torch.special.entr(counts / len(ids)).sum() / BIT


def comparison(video_BCTHW: Tensor, decoded_BCTHW: Tensor) -> Tensor:
    """First, middle and last frame of each clip, originals over reconstructions, as one image [3, H', W'] in [0, 1]."""
    T = video_BCTHW.shape[2]
    frames = sorted({0, T // 2, T - 1})
    rows = [x[:, :, frames].transpose(1, 2).flatten(0, 1) for x in (video_BCTHW, decoded_BCTHW)]
    return make_grid(torch.cat(rows).float().cpu(), nrow=len(rows[0]), normalize=True, value_range=(-1, 1))


def read_fixed_clips(
    root: str | Path | None,
    clips: int,
    frames: int,
    size: int | Sequence[int],
    stride: tuple[int, int, int],
    training_files: Iterable[str] = (),
) -> list[Tensor]:
    """Read the first frames of some videos spread over a folder, float32 [1, 3, frames, size, size] in [-1, 1] each.

    Args:
        root: the folder; "digits", the ones that training doesn't see; None, no clips.
        clips: how many. Videos with fewer than `frames` frames are left out with a warning.
        frames: of each; 1 takes images, too.
        size: of the center crop, pixels; several give each video at every size, one size after the other.
        stride: of the tokenizer, which frames and size must fit.
        training_files: among which no file of the folder may be.

    Raises:
        ValueError: for a shape that doesn't fit the stride, a folder without videos (or with too short ones alone), and
            files of the training.
    """
    if root is None:
        return []
    if clips < 1:
        raise ValueError(f"validation.clips={clips} must be at least 1; validation.root=null watches none")
    if not isinstance(size, int):
        if not size or len({*size}) < len(size) or not all(isinstance(one, int) for one in size):
            raise ValueError(f"validation.size={size} must be one or more different sizes in pixels")
        arguments = (stride, list(training_files))
        return [clip for one in size for clip in read_fixed_clips(root, clips, frames, one, *arguments)]
    if root == "digits":
        digits = MovingDigits("val", frames, size)
        found = [digits[i * len(digits) // clips].video for i in range(clips)]
    else:
        files = find_media(root, MEDIA_SUFFIXES if frames == 1 else VIDEO_SUFFIXES)
        validate_disjoint(training_files, files)
        chosen = files[:: max(1, len(files) // max(1, clips))][:clips]
        read = [read_video(path, size=(size, size), max_frames=frames) for path in chosen]
        found = [clip for clip in read if clip.shape[2] == frames]
        if len(found) < len(read):
            warnings.warn(f"{len(read) - len(found)} validation clips have fewer than {frames} frames", stacklevel=2)
        if not found:
            raise ValueError(f"validation.root={root} holds no video of {frames} frames or more")
    check_video(found[0], stride)
    return found


def build_tokenizer_training(cfg: DictConfig) -> dict:
    """Build the arguments of `vidtok.train.loop.train` from the config of `vidtok train tokenizer`.

    For a branch this starts its folder too, and completes `cfg`, which the folder keeps.
    """
    # Imported here: a tokenizer alone needs none of it.
    from vidtok.nets.inflate import grow, inflate
    from vidtok.train.state import create_optimizer, join_processes

    perceptual = build_perceptual(cfg)
    if perceptual is None:
        cfg.loss.perceptual = cfg.loss.gram = 0.0
    plain = to_dict(cfg)
    data, weights = plain["data"], LossWeights(**plain["loss"])
    if len(given := [key for key in ("branch", "init", "inflate", "grow") if plain[key]]) > 1:
        raise ValueError(f"give one of {'= and '.join(given)}=: each says what the weights start as")
    model = validate_branch(plain["branch"], plain["run"]) if plain["branch"] else {}
    # The branch point isn't known before the checkpoint is copied; until then this checks the settings.
    arguments = build_schedule(plain, Branch(plain["branch"], 0, 0.0, model) if plain["branch"] else None)

    torch.manual_seed(plain["seed"])  # of the initial weights
    if plain["branch"]:
        cfg.model = model
        tokenizer = VideoTokenizer(TokenizerConfig(**model))
    elif plain["init"]:
        tokenizer = VideoTokenizer.from_pretrained(plain["init"])
        cfg.model = asdict(tokenizer.config)  # the config that the run folder keeps names the model that was trained
    else:
        tokenizer = build_tokenizer(cfg)
        if plain["inflate"]:
            inflate(VideoTokenizer.from_pretrained(plain["inflate"]), tokenizer)
        if plain["grow"]:
            grow(VideoTokenizer.from_pretrained(plain["grow"]), tokenizer)
    batches, fixed_clips = build_clips(plain, tokenizer.stride)
    fingerprint = training_fingerprint(plain, tokenizer.config)
    trained: nn.Module = tokenizer
    semantic = None
    if weights.semantic_ratio:
        from vidtok.train.semantic import build_semantic  # it imports teachers, which other runs don't need

        example = torch.zeros(1, 3, data["frames"], data["crop"], data["crop"])
        trained, semantic = build_semantic(plain["semantic"], tokenizer, example)
        fingerprint |= semantic.fingerprint
    state = build_state(trained, plain)
    if weights.adversarial > 0:
        size = (1 if weights.adversarial_frames else data["frames"], data["crop"], data["crop"])
        state.discriminator = Discriminator(size, **plain["discriminator"])
        state.discriminator_optimizer = create_optimizer(state.discriminator, **plain["discriminator_optimizer"])
    task = TokenizerTask(weights, perceptual, fixed_clips, semantic)
    if plain["branch"]:  # last, so that a command that failed has started none
        branch = start_branch(plain["branch"], plain["run"], join_processes())
        arguments = build_schedule(plain, branch)
        cfg.trainer.shape, cfg.trainer.max_steps = "decay", arguments["schedule"].max_steps
    elif other := read_branch(cfg.run):
        raise ValueError(f"run={cfg.run} holds a branch: give branch={other.run} to go on, or another run=")
    return {"task": task, "state": state, "batches": batches, "fingerprint": fingerprint, **arguments}


def training_fingerprint(plain: dict, config: TokenizerConfig) -> dict:
    """Return the settings of a run that can't change when it is resumed, by name.

    What may change, since long runs retune it: loss weights, learning rates and their schedule, the end of the run,
    logging, saving, workers, memory, video reader and validation. The run folder keeps the configs of all parts.
    """
    data = {key: value for key, value in plain["data"].items() if key not in ("cache", "cache_gb", "reader")}
    settings = {
        "command": "train tokenizer",
        "seed": plain["seed"],
        "model": {"net": config.net, "quantizer": config.quantizer},
        "data": data,
        "trainer": {key: plain["trainer"][key] for key in ("precision", "accumulate", "clip_norm", "ema_decay")},
        **{key: plain[key] for key in ("init", "inflate", "grow")},
    }
    for optimizer in ("optimizer", "discriminator_optimizer"):
        settings[optimizer] = {key: value for key, value in plain[optimizer].items() if key != "lr"}
    return _flat(settings)


def _flat(settings: dict, prefix: str = "") -> dict:
    """{"data": {"crop": 128}} -> {"data.crop": 128}."""
    flat: dict = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def build_clips(plain: dict, stride: tuple[int, int, int]) -> tuple["ClipFolder | DigitClips", list[torch.Tensor]]:
    """Training batches of the group `data`, and the fixed clips of `validation`, which are none of theirs."""
    from vidtok.datasets import ClipFolder, DigitClips

    data = dict(plain["data"])
    files: list[str] = []
    batches: ClipFolder | DigitClips
    if (kind := data.pop("kind")) == "folder":
        batches = ClipFolder(data.pop("root"), stride=stride, seed=plain["seed"], **data)
        files = batches.videos + batches.images
    elif kind == "digits":
        batches = DigitClips(seed=plain["seed"], stride=stride, **data)
    else:
        raise ValueError(f"unknown data.kind {kind!r}: {nearest(kind, ['folder', 'digits'])}")
    if plain["validation"] is None:
        raise ValueError("validation=null leaves out its settings: validation.root=null watches none")
    return batches, read_fixed_clips(**plain["validation"], stride=stride, training_files=files)
