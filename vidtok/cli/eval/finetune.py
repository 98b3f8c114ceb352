"""Train a recognition head end to end, choose its checkpoint on a part of the training clips, and test it once.

    vidtok eval finetune data.source=digits data.size=64 data.protocol=17x1x1x1 trainer.max_steps=2000
    vidtok eval finetune data.source=grid.csv data.label_column=command input=codes trainer.max_minutes=30
    vidtok eval finetune recipe=k400-vivit-b-tokens data.source=train.csv data.root=DIR data.val_source=val.csv
    vidtok eval finetune head=attentive input=hidden data.source=grid.csv      # an attentive probe
    vidtok eval finetune --config recipe=ssv2-attentive        # print the settings, and what each group offers

All settings are hydra's: key=value, group=name. The run folder (run=DIR) holds the resolved config, checkpoints, model/
(the last head), best/ (the chosen one), TensorBoard scalars and, in the end, result.json (schema vidtok.recognition/1).
The same command again resumes from its checkpoint. `vidtok eval recognition DIR/best ...` tests the head on other data.
"""

import argparse
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    if args.config:
        from vidtok.configs.compose import describe_config

        print(describe_config("finetune", args.overrides))
        return 0

    from vidtok.eval.recognition import finetune

    result = finetune(*args.overrides, log=partial(print, flush=True))
    return 1 if result and result["n_failed"] else 0
