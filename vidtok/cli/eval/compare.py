"""Compare recognition from tokens, codes, latents, hidden features, pixels and reconstructions.

The same head is trained on each input, with the same clips and the same budget.

    vidtok eval compare data.source=digits data.size=64 data.protocol=17x1x1x1 run=runs/compare-digits
    vidtok eval compare data.source=grid.csv data.label_column=command arms=[tokens,pixels,recon] seeds=[0,1,2]
    vidtok eval compare --config data.source=grid.csv         # print the settings and the options of each group

Settings are hydra overrides: those of `vidtok eval finetune`, and arms, seeds and reference. Heads of the arm pixels
are also tested on reconstructions (the protocol of the MAGVIT-v2 paper). The run folder (run=DIR) keeps every clip,
encoding and head, and the same command resumes an interrupted run. At the end the folder holds result.json (schema
vidtok.recognition/1), page.html with charts and playable clips, and charts/.
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
