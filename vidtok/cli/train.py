"""Train a model.

    vidtok train tokenizer data.root=DIR trainer.max_minutes=60
    vidtok train tokenizer data.root=DIR trainer.max_minutes=60 init=vidtok-t     # start from the shipped model
    vidtok train tokenizer data.root=DIR trainer.shape=constant run=A             # trains until it is stopped
    vidtok train tokenizer data.root=DIR branch=A run=B trainer.max_steps=2000    # from A's checkpoint, decaying rate
    vidtok train tokenizer experiment=vidtok-t data.root=DIR                      # recipe of the next shipped model
    vidtok train pretrain data.features=ids trainer.max_minutes=60                # backbone for eval finetune init=
    vidtok train prior tokenizer=vidtok-t data.source=videos/ run=P               # for vidtok compress --entropy prior
    vidtok train tokenizer --config               # print the settings and the options of each group
    torchrun --nproc-per-node 8 -m vidtok train tokenizer ...                     # data parallel over eight processes

Settings are hydra overrides: key=value, group=name. The run folder (run=DIR) holds the resolved config, checkpoints,
the model, TensorBoard scalars and pictures. The same command resumes an interrupted run from its checkpoint.
"""

import argparse

from vidtok.cli import settings


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("tokenizer", "generator", "pretrain", "prior"), help="kind of model to train")
    settings.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    if settings.show_config(args, f"train_{args.kind}"):
        return

    from vidtok.train.run import pretrain, train_generator, train_prior, train_tokenizer

    kinds = {
        "tokenizer": train_tokenizer, "generator": train_generator, "pretrain": pretrain, "prior": train_prior,
    }  # fmt: skip
    kinds[args.kind](*args.overrides, log=settings.log)
