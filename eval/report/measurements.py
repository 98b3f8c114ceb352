"""The measurements behind the published figures: run their commands, each once, and publish their results.

`measurements.yaml` lists them. The commands are those of the docs: they run in bash, in the folder OUTPUT/NAME, where
the data and weights that they name are links.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vidtok.errors import UserError, nearest
from vidtok.files import write_json
from vidtok.hub import PRETRAINED, hash_file
from vidtok.provenance import provenance

FILE = Path(__file__).parent / "measurements.yaml"
DONE, LOG = "done.json", "log.txt"  # in the folder of a measurement

# `vidtok` and `python` are those that run this, also where no environment is activated.
SHELL = """set -euo pipefail
vidtok() {{ {python} -m vidtok "$@"; }}
python() {{ {python} "$@"; }}
"""


@dataclass(frozen=True)
class Measurement:
    """Commands whose results are published together.

    Attributes:
        name: its name. commands: a bash script.
        minutes: expected duration on one CPU core.
        inputs: names of the files and folders that the commands read.
        publish: {result file: its place in the repository}. without: keys that published results lack.
        weights: shipped weights that the results depend on, a glob below vidtok/pretrained.
    """

    name: str
    commands: str
    minutes: float
    inputs: Sequence[str] = ()
    publish: dict[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()
    weights: str = "*/model.safetensors"


def load_measurements(only: Sequence[str] = (), file: Path = FILE) -> list[Measurement]:
    """Load the listed measurements in order. only: names of some of them.

    Raises:
        UserError: an unknown name.
    """
    listed = [Measurement(name, **entry) for name, entry in yaml.safe_load(file.read_text()).items()]
    names = [each.name for each in listed]
    for name in only:
        if name not in names:
            raise UserError(f"no measurement {name!r}: {nearest(name, names)}")
    return [each for each in listed if not only or each.name in only]


def run_measurements(
    measurements: Sequence[Measurement],
    sources: Sequence[str | Path],
    output: str | Path,
    log: Callable[[str], None] = print,
) -> list[str]:
    """Run the measurements that haven't been completed; the same call goes on after a stop.

    A measurement that fails doesn't keep the next ones from running. Each one writes its output to `log.txt` in its
    folder.

    Args:
        measurements: see `load_measurements`. sources: folders that hold their inputs.
        output: folder of the results. log: called with each line of progress.

    Returns:
        Names of those that failed.

    Raises:
        UserError: an input is in none of the folders, or `output` holds results of other commands or weights.
    """
    links = {each.name: find_inputs(each, sources) for each in measurements}
    pending = [each for each in measurements if not is_done(each, Path(output))]
    log(f"{len(pending)} of {len(measurements)} to do, about {sum(each.minutes for each in pending):.0f} minutes")
    failed = []
    for each in pending:
        folder = Path(output) / each.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in links[each.name].items():
            if (folder / name).is_symlink():  # of a stopped call, to a place that may have changed
                (folder / name).unlink()
            (folder / name).symlink_to(target)
        log(f"{each.name}: about {each.minutes:g} minutes, output in {folder / LOG}")
        start = time.perf_counter()
        with open(folder / LOG, "a") as file:
            status = subprocess.run(
                ["bash", "-c", SHELL.format(python=shlex.quote(sys.executable)) + each.commands],
                cwd=folder, stdout=file, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        seconds = time.perf_counter() - start
        if status:
            failed.append(each.name)
            log(f"{each.name}: failed with status {status}: {_last_line(folder / LOG)}")
            continue
        known = {"commands": each.commands, "weights": shipped_weights(each)}
        write_json(folder / DONE, known | {"seconds": seconds, "provenance": provenance("cpu")})
        log(f"{each.name}: done in {seconds / 60:.0f} minutes")
    return failed


def find_inputs(measurement: Measurement, sources: Sequence[str | Path]) -> dict[str, Path]:
    """Find the inputs of a measurement: {name: absolute path}. Raises UserError if one is in none of `sources`."""
    found = {}
    for name in measurement.inputs:
        paths = [Path(source) / name for source in sources if (Path(source) / name).exists()]
        if not paths:
            places = ", ".join(map(str, sources)) or "no folder"
            raise UserError(f"{measurement.name} reads {name}, which isn't in {places}: give the folder that holds it")
        found[name] = paths[0].absolute()
    return found


def is_done(measurement: Measurement, output: Path) -> bool:
    """Whether `output` holds the results. Raises UserError if they are of other commands or weights."""
    file = output / measurement.name / DONE
    if not file.exists():
        return False
    known = json.loads(file.read_text())
    for what, now in (("commands", measurement.commands), ("weights", shipped_weights(measurement))):
        if known[what] != now:
            raise UserError(f"{file.parent} holds results of other {what}: remove that folder, or give another output")
    return True


def shipped_weights(measurement: Measurement) -> dict[str, str]:
    """Return the hashes of the shipped weights that the results depend on: {file: hash}."""
    files = sorted(PRETRAINED.glob(measurement.weights))
    return {file.relative_to(PRETRAINED.parent.parent).as_posix(): hash_file(file) for file in files}


def publish(measurements: Sequence[Measurement], output: str | Path, repository: str | Path) -> list[Path]:
    """Copy the results of completed measurements to their places in a checkout.

    Returns:
        Files that were written.

    Raises:
        UserError: results of other commands or weights.
    """
    completed = [each for each in measurements if is_done(each, Path(output))]  # before weights are replaced
    written = []
    for each in completed:
        for name, place in each.publish.items():
            source, target = Path(output) / each.name / name, Path(repository) / place
            if source.suffix == ".json":
                result = json.loads(source.read_text())
                write_json(target, {key: value for key, value in result.items() if key not in each.without})
            else:
                target.write_bytes(source.read_bytes())
            written.append(target)
    return written


def command_blocks() -> dict[str, str]:
    """Return the commands of every measurement as a block of Markdown, by the name `commands_NAME` of its place."""
    return {f"commands_{each.name}": f"```bash\n{each.commands}```" for each in load_measurements()}


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
