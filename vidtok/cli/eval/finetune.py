"""Train a recognition head, select a checkpoint on a part of the training clips, and test it once.

    vidtok eval finetune data.source=digits data.size=64 data.protocol=17x1x1x1 trainer.max_steps=2000
    vidtok eval finetune data.source=grid.csv data.label_column=command input=codes trainer.max_minutes=30
    vidtok eval finetune recipe=k400-vivit-b-tokens data.source=train.csv data.root=DIR data.val_source=val.csv
    vidtok eval finetune head=attentive input=hidden data.source=grid.csv      # an attentive probe
    vidtok eval finetune --config recipe=ssv2-attentive        # print the settings and the options of each group

Settings are hydra overrides: key=value, group=name. The run folder (run=DIR) holds the resolved config, checkpoints,
model/ (the last head), best/ (the selected head), TensorBoard scalars and, at the end, result.json (schema
vidtok.recognition/1). The same command resumes an interrupted run. `vidtok eval recognition DIR/best ...` tests the
head on other data.
"""

import argparse

from vidtok.cli import settings
from vidtok.cli.eval import exit_status

configure = settings.add_overrides


def run(args: argparse.Namespace) -> int:
    if settings.show_config(args, "finetune"):
        return 0

    from vidtok.eval.recognition import finetune

    return exit_status(finetune(*args.overrides, log=settings.log))
