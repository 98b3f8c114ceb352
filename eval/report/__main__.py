"""Measure anew what the docs publish.

    python -m vidtok.eval.report list
    python -m vidtok.eval.report all data/ weights/ -o out               # hours; the same command goes on
    python -m vidtok.eval.report all data/ weights/ -o out --only probes --only motion_tasks
    python -m vidtok.eval.report publish -o out                          # into the checkout's results and tables

The folders hold the data and weights that the commands name. Each measurement runs once, in a folder of its own with
links to its inputs. `publish` copies the results of completed ones to eval/results/ and the model cards, and writes the
tables of README and docs anew.
"""

import argparse
import sys
from pathlib import Path

from vidtok.errors import UserError
from vidtok.eval.report.markdown import update_pages
from vidtok.eval.report.measurements import load_measurements, publish, run_measurements

CHECKOUT = Path(__file__).parent.parent.parent


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vidtok.eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["list", "all", "publish"])
    parser.add_argument("sources", nargs="*", metavar="FOLDER", help="folders of data and weights")
    parser.add_argument("-o", "--output", metavar="OUT", help="folder of the results")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one measurement; may be repeated")
    args = parser.parse_args(argv)
    if args.action != "list" and args.output is None:
        parser.error("give the folder of the results: -o OUT")
    try:
        measurements = load_measurements(args.only)
        if args.action == "list":
            for each in measurements:
                print(f"{each.name}, about {each.minutes:g} minutes; reads {', '.join(each.inputs) or 'nothing'}")
            return 0
        if args.action == "all":
            return bool(run_measurements(measurements, args.sources, args.output))
        written = publish(measurements, args.output, CHECKOUT)
        update_pages([CHECKOUT / "README.md", *sorted((CHECKOUT / "docs/pages").glob("*.md"))])
    except UserError as error:
        print(f"vidtok.eval.report: {error}", file=sys.stderr)
        return 1
    for file in written:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
