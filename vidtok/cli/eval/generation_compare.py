"""Compare masked, autoregressive and diffusion generators with equal transformers, data and training time.

    vidtok eval generation-compare data.features=tokens trainer.max_minutes=12 i3d=FILE recognizer=DIR run=runs/gen
    vidtok eval generation-compare data.features=tokens max_flops=2e16 "seeds=[0,1,2]" i3d=FILE run=runs/flops
    vidtok eval generation-compare --config ...         # print the settings and the options of each group

Settings are hydra overrides: those of `vidtok train generator`, which apply to all kinds, and kinds, variants, seeds,
training, steps, settings, real, n_real, n_fake, folds, i3d and recognizer (see configs/generation_compare.yaml). The
budget is trainer.max_minutes, max_flops or trainer.max_steps. data.features must be latents (`vidtok extract --features
latents`): diffusion is trained on them, and the language models on their signs. The run folder keeps every training run
and measurement, and the same command resumes an interrupted run. At the end the folder holds result.json (schema
vidtok.eval.generation-compare/1), table.md, chart.png, page.html, and a picture of samples of each model.
"""

import argparse

from vidtok.cli import settings

configure = settings.add_overrides


def run(args: argparse.Namespace) -> None:
    if settings.show_config(args, "generation_compare"):
        return

    from vidtok.eval.generation import compare

    compare(*args.overrides, log=settings.log)
