"""Train the same head on tokens, codes, latents, hidden features, pixels and reconstructions of the same clips, with
the same budget: how much of an action is left in the tokens?

    vidtok eval compare data.source=digits data.size=64 data.protocol=17x1x1x1 run=runs/compare-digits
    vidtok eval compare data.source=grid.csv data.label_column=command arms=[tokens,pixels,recon] seeds=[0,1,2]
    vidtok eval compare --config data.source=grid.csv         # print the settings, and what each group offers

All settings are hydra's: those of `vidtok eval finetune`, and arms, seeds, reference. With pixels among the arms, their
heads are also tested on reconstructions (the MAGVIT-v2 paper's protocol). The run folder (run=DIR) keeps every clip,
encoding and head; the same command again resumes. In the end it holds result.json (schema vidtok.recognition/1),
page.html with charts and playable clips, and charts/.
"""

import argparse

from vidtok.cli import settings
from vidtok.cli.eval import exit_status

configure = settings.add_overrides


def run(args: argparse.Namespace) -> int:
    if settings.show_config(args, "compare"):
        return 0

    from vidtok.eval.recognition.comparison import compare

    return exit_status(compare(*args.overrides, log=settings.log))
