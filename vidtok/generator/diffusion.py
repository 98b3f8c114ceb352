"""Diffusion baseline: a diffusion transformer on LFQ's latents, whose signs are the tokens.

It uses the same transformer as the masked and autoregressive models.

Legend: B batch, N tokens, K latent channels = bits of a token, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from vidtok.errors import nearest
from vidtok.generator.base import Generator, GeneratorConfig, Objective, Request, classifier_free_guidance
from vidtok.generator.sampling import guidance_scale
from vidtok.quantize.lfq import ids_to_signs, signs_to_ids

SOLVERS = ("ddim", "dpm")
TRAIN_STEPS = 1000


class DiffusionGenerator(Generator):
    """Diffusion transformer (DiT, Peebles and Xie 2023) that predicts the velocity or the noise of the latents.

    Known tokens are given as their signs, without noise. The timestep is added to the condition of the adaptive norms.

    Args:
        config: the config, whose `arguments` are the following.
        prediction: "v_prediction" or "epsilon". With v_prediction the last timestep is pure noise (Lin et al. 2023).
        betas: diffusers' name of the noise schedule.
        positions: position embeddings, see `Generator`.

    Raises:
        ValueError: an unknown prediction, noise schedule or position embedding.
    """

    default_steps = 50
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: GeneratorConfig,
        prediction: str = "v_prediction",
        betas: str = "squaredcos_cap_v2",
        positions: str = "both",
    ):
        super().__init__(config, positions)
        if prediction not in ("v_prediction", "epsilon"):
            raise ValueError(f"unknown prediction {prediction!r}: {nearest(prediction, ('v_prediction', 'epsilon'))}")
        try:
            self.noising: Any = DDIMScheduler(
                TRAIN_STEPS,
                beta_schedule=betas,
                prediction_type=prediction,
                clip_sample=False,
                set_alpha_to_one=True,
                timestep_spacing="trailing",
                rescale_betas_zero_snr=prediction == "v_prediction",
            )
        except NotImplementedError as error:
            raise ValueError(f"diffusers has no noise schedule betas={betas}") from error
        self.waves = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(256, config.width)
        self.proj_in, self.proj_out = nn.Linear(config.bits, config.width), nn.Linear(config.width, config.bits)
        self.known_embed = nn.Parameter(torch.randn(config.width) * 0.02)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.register_buffer("mean", torch.zeros(config.bits))
        self.register_buffer("std", torch.ones(config.bits))

    def fit_scale(self, latents_BKthw: Tensor) -> None:
        """Set the mean and standard deviation per channel that normalize the latents, from a sample of latents."""
        values = latents_BKthw.float().transpose(0, 1).flatten(1)
        self.mean.copy_(values.mean(1))
        self.std.copy_(values.std(1).clamp(min=1e-4))

    def check_sampling(self, steps: int | None = None, guidance: float = 1.0, **options) -> None:
        super().check_sampling(steps, guidance, **options)
        if (solver := options.get("solver", SOLVERS[0])) not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: {nearest(solver, SOLVERS)}")
        if steps is not None and steps > TRAIN_STEPS:
            raise ValueError(f"diffusion takes at most the {TRAIN_STEPS} steps that it was trained with, not {steps}")

    def predict(self, x_BNK: Tensor, time_B: Tensor, ids_BN: Tensor, known_BN: Tensor, condition_BD: Tensor) -> Tensor:
        """Predict velocity or noise, float32 [B, N, K]."""
        dtype = self.proj_in.weight.dtype  # noise and waves are float32, the weights may be half precision
        known = self.proj_in(ids_to_signs(ids_BN, self.config.bits).to(dtype)) + self.known_embed
        x_BND = torch.where(known_BN[..., None], known, self.proj_in(x_BNK.to(dtype)))
        condition_BD = condition_BD + self.time_embed(self.waves(time_B).to(dtype))
        return self.proj_out(self.trunk(x_BND, condition_BD)).float()

    def forward(self, batch, objective: Objective) -> dict[str, Tensor]:
        """Compute the training terms.

        Returns:
            loss: mean squared error of the prediction for normalized latents; known tokens count as 0.
        """
        rng, label_B, known_BN = self.draw_conditions(batch, objective)
        z_BNK = (batch["latents"].float().flatten(2).transpose(1, 2) - self.mean) / self.std
        noise_BNK = rng.normal(*z_BNK.shape[1:])
        time_B = rng.whole(0, TRAIN_STEPS - 1)
        x_BNK = self.noising.add_noise(z_BNK, noise_BNK, time_B)
        velocity = self.noising.config.prediction_type == "v_prediction"
        target = self.noising.get_velocity(z_BNK, noise_BNK, time_B) if velocity else noise_BNK
        condition_BD = self.label_embed(label_B)
        predicted = self.predict(x_BNK, time_B, batch["ids"].flatten(1), known_BN, condition_BD)
        error_BN = F.mse_loss(predicted, target, reduction="none").mean(-1)
        return {"loss": error_BN.masked_fill(known_BN, 0).mean()}

    def sample(self, request: Request, *, solver: str = "ddim", guidance_schedule: str = "constant") -> Tensor:
        """Denoise each sample's noise with a deterministic solver and take the signs of the latents.

        Args:
            request: the conditions.
            solver: "ddim" or "dpm" (DPM-Solver++ of order 2, better with few steps).
            guidance_schedule: growth of the guidance over the steps: "constant", "linear" or "cosine".

        Returns:
            int64 ids [B, N].
        """
        ids_BN, known_N, steps = request.ids_BN, request.known_N, request.steps
        config = self.noising.config
        kind = DDIMScheduler if solver == "ddim" else DPMSolverMultistepScheduler
        scheduler = kind.from_config(config)
        scheduler.set_timesteps(steps, device=ids_BN.device)
        x_BNK = request.rng.normal(self.tokens, self.config.bits)
        for step, time in enumerate(scheduler.timesteps):
            scale = guidance_scale(guidance_schedule, request.guidance, (step + 1) / steps)
            copies = 1 if scale == 1 else 2
            predicted = self.predict(
                x_BNK.repeat(copies, 1, 1),
                time.expand(copies * len(x_BNK)),
                ids_BN.repeat(copies, 1),
                known_N.expand(copies * len(x_BNK), -1),
                self.guided(scale, request.label_B),
            )
            x_BNK = scheduler.step(classifier_free_guidance(predicted, scale, len(x_BNK)), time, x_BNK).prev_sample
            request.progress(step + 1, steps)
        return torch.where(known_N, ids_BN, signs_to_ids(x_BNK * self.std + self.mean))
