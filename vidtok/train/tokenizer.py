"""The task of training a tokenizer: MAGVIT-v2's objective, and reconstructions of fixed clips to watch it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid

from vidtok.eval.metrics import block_edges
from vidtok.logits import LogitDistance
from vidtok.lpips import LPIPS
from vidtok.tokenizer import VideoTokenizer
from vidtok.train import adversarial
from vidtok.train.discriminator import Discriminator
from vidtok.train.folder import RunFolder
from vidtok.train.loss import LossWeights, perceptual_and_gram_loss, perceptual_loss, reconstruction_loss
from vidtok.train.task import AdversarialTask, bare

BIT = math.log(2)  # nats


class TokenizerTask(AdversarialTask):
    """Batches are clips, float32 [B, 3, T, H, W] in [-1, 1].

    All terms are means over clips but one: LFQ's codebook entropy is a function of all tokens together. It is that of
    all processes' tokens, and with accumulated gradients the mean over the parts, each of which shows fewer codes.

    Args:
        weights: of the terms.
        discriminator: the critic of the adversarial game, the same object as in the state; None plays none.
        perceptual: the distance of the perceptual term, needed where its weight isn't 0; LPIPS where the weight of the
            Gram term isn't 0.
        fixed_clips: [1, 3, T, H, W] each, of one or more sizes; PSNR, block edges and pictures of them show how the run
            goes. May be empty.
    """

    def __init__(
        self,
        weights: LossWeights,
        discriminator: Discriminator | None = None,
        perceptual: LPIPS | LogitDistance | None = None,
        fixed_clips: list[Tensor] = (),
    ):
        self.weights, self.discriminator, self.perceptual = weights, discriminator, perceptual
        self.fixed_clips, self.logit_decay = fixed_clips, weights.lecam_decay

    def plays(self, step: int) -> bool:
        return self.discriminator is not None and step >= self.weights.adversarial_start

    def terms(self, model: nn.Module, batch: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        decoded, z, codes = model(batch)
        quantizer = bare(model).quantizer
        terms = {"reconstruction": reconstruction_loss(decoded, batch), **quantizer.losses(z, codes)}
        terms["usage_bits"] = usage_bits(quantizer.codes_to_ids(codes.detach()))
        terms["explained"] = 1 - terms["reconstruction"].detach() / batch.var().clamp_min(1e-6)
        if self.perceptual is not None:
            frames = torch.Generator().manual_seed(step)
            distance = self.perceptual.to(batch.device)
            looked_at = (decoded, batch, self.weights.perceptual_frames, frames)
            if self.weights.gram:
                terms["perceptual"], terms["gram"] = perceptual_and_gram_loss(distance, *looked_at)
            else:
                terms["perceptual"] = perceptual_loss(distance, *looked_at)
        if self.plays(step):
            # Not the wrapped one: nothing here is for the discriminator to learn from.
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = adversarial.generator_loss(self.discriminator(decoded))
            self.discriminator.requires_grad_(True)
        return terms, decoded.detach()

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        return self.weights.total(terms, step)

    def critic_terms(
        self, critic: nn.Module, batch: Tensor, carried: Tensor, averages: Tensor, step: int
    ) -> dict[str, Tensor]:
        real = batch.requires_grad_(self.weights.r1 > 0)
        real_logits, fake_logits = critic(torch.cat([real, carried])).chunk(2)
        terms = {
            "discriminator": adversarial.discriminator_loss(real_logits, fake_logits),
            "lecam": adversarial.lecam_penalty(real_logits, fake_logits, averages),
            "discriminator_accuracy": adversarial.accuracy(real_logits, fake_logits),
            "real_logit": real_logits.detach().mean(),
            "fake_logit": fake_logits.detach().mean(),
        }
        if self.weights.r1 > 0:
            with torch.autocast(batch.device.type, enabled=False):
                terms["r1"] = adversarial.r1_penalty(real_logits, real)
        return terms

    def critic_total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        return self.weights.critic_total(terms)

    def validate(self, model: VideoTokenizer, run: RunFolder, step: int) -> str | None:
        """Measure the fixed clips, and draw the first four of each size.

        Scalars: `validation_psnr` (peak 2, mean over clips) and `validation_block_ratio` (see `block_edges`; left out
        for stride 1). With clips of several sizes, every name ends in `_<size>`.
        """
        sizes = sorted({clip.shape[-1] for clip in self.fixed_clips})
        lines = []
        for size in sizes:
            suffix = f"_{size}" if len(sizes) > 1 else ""
            clips = [clip for clip in self.fixed_clips if clip.shape[-1] == size]
            lines.append(self._validate(clips, suffix, model, run, step))
        return "; ".join(lines) or None

    def _validate(self, clips: list[Tensor], suffix: str, model: VideoTokenizer, run: RunFolder, step: int) -> str:
        shown, psnr, block_ratio = [], [], []
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
        edges = f", block ratio {means['block_ratio']:.3f}," if block_ratio else ""
        return f"validation{suffix} {means['psnr']:.2f} dB{edges} on {len(clips)} fixed clips, {picture}"

    def progress(self, scalars: dict[str, float]) -> str:
        parts = [f"l2 {scalars['reconstruction']:.4f}"]
        for name in ("perceptual", "gram", "commitment", "adversarial", "discriminator"):
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
