"""Train masked, autoregressive and diffusion generators with one transformer, equal data and equal training time.

    vidtok eval generation-compare data.features=tokens trainer.max_minutes=12 i3d=FILE recognizer=DIR run=runs/gen
    vidtok eval generation-compare --config ...         # print the settings, and what each group offers

All settings are hydra's: those of `vidtok train generator`, for all kinds alike, and kinds, training, steps, settings,
real, n_real, n_fake, folds, i3d, recognizer (see configs/generation_compare.yaml). Diffusion is trained on latents, so
data.features are those of `vidtok extract --features latents`; the language models take the signs. The run folder keeps
every training run and every measurement; the same command again resumes. In the end it holds result.json (schema
vidtok.eval.generation-compare/1), table.md, chart.png, and a picture of samples of each kind.
"""

import argparse

from vidtok.cli import settings

configure = settings.add_overrides


def run(args: argparse.Namespace) -> None:
    if settings.show_config(args, "generation_compare"):
        return

    from vidtok.eval.generation import compare

    compare(*args.overrides, log=settings.log)
