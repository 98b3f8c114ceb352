"""Count how often a command changes the file that it runs in: how far a reader has to jump to follow it.

    python tests/hops.py extract [--pairs 20]  # `vidtok extract --workers 0` of the demo clip, 17 frames
    python tests/hops.py compare [--pairs 20]  # `vidtok eval compare` of a few digits, two steps

A change is a Python function call whose code is in another file than that of the call before it. Only functions of this
project count, and of a generator each step; what importing a module runs does not.
"""

import argparse
import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = f"{ROOT}/tests/"


def count_hops(work: Callable[[], object]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Run `work` and count what it does in this thread.

    Returns:
        ({file: number of calls of its functions}, {(function before, function after): number of changes of file}).
        Files are relative to the project, functions are "file:name".
    """
    calls: Counter[str] = Counter()
    changes: Counter[tuple[str, str]] = Counter()
    last = None

    def hook(frame, event: str, _) -> None:
        nonlocal last
        code = frame.f_code
        name = code.co_filename
        # The bodies of modules and classes, which run at import, are not optimized.
        if event != "call" or not name.startswith(f"{ROOT}/") or name.startswith(TESTS):
            return
        if not code.co_flags & inspect.CO_OPTIMIZED:
            return
        calls[name.removeprefix(f"{ROOT}/")] += 1
        if last is not None and last.co_filename != name:
            changes[_name(last), _name(code)] += 1
        last = code

    before = sys.getprofile()
    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls, changes


def _name(code) -> str:
    return f"{code.co_filename.removeprefix(f'{ROOT}/')}:{code.co_qualname}"


def extract_command(folder: Path, model: str = "vidtok-t") -> list[str]:
    """Arguments of an extraction of the demo clip, which is written to the folder."""
    from vidtok.datasets import demo_clip, write_video

    write_video(folder / "demo.mp4", demo_clip(17), 30)
    return ["extract", f"{folder}/demo.mp4", "-o", f"{folder}/tokens", "--workers", "0", "--model", model]


def compare_command(folder: Path, model: str = "vidtok-t") -> list[str]:
    """Arguments of a comparison of tokens with pixels on digits, with tiny heads."""
    tiny = "head=vivit-micro-factorized head_options={dim:16,depth:1,temporal_depth:1,heads:2} data.batch_size=8"
    data = "data.source=digits data.size=32 data.train_clips=16 data.val_clips=8 data.protocol=5x1x1x1"
    steps = "arms=[tokens,pixels] seeds=[0] trainer.max_steps=2 trainer.warmup_steps=1 page.clips=2"
    return ["eval", "compare", *f"{data} {tiny} {steps} tokenizer={model} run={folder}/compare".split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["extract", "compare"])
    parser.add_argument("--pairs", type=int, default=20, help="number of pairs of functions to print")
    args = parser.parse_args()
    from vidtok.cli.main import main as vidtok

    with tempfile.TemporaryDirectory() as folder:
        command = {"extract": extract_command, "compare": compare_command}[args.command](Path(folder))
        calls, changes = count_hops(lambda: vidtok(command))
    print(f"{len(calls)} files, {changes.total()} changes of file")
    for name, number in calls.most_common():
        print(f"{number:7}  {name}")
    for (before, after), number in changes.most_common(args.pairs):
        print(f"{number:7}  {before} -> {after}")


if __name__ == "__main__":
    main()
