"""Run on systems without what only Linux has: it is taken away in a process of its own and in its children."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import vidtok
from vidtok.checks import count_cpus
from vidtok.datasets import demo_clip, write_video
from vidtok.extraction import open_reader
from vidtok.extraction.output import FileLocks, RecordLocks, video_locks

# Read by every Python process with this folder on its path. multiprocessing asks get_all_start_methods of its context.
WITHOUT = """
import multiprocessing.context, os, sys
sys.modules["fcntl"] = None
for name in ("sched_getaffinity", "sched_setaffinity", "process_cpu_count", "getloadavg", "setsid", "geteuid"):
    if hasattr(os, name):
        delattr(os, name)
multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]
"""


IMPORT_ALL = """
import importlib, pkgutil, vidtok
for module in pkgutil.walk_packages(vidtok.__path__, "vidtok."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in ("ray", "pyarrow"):  # extras
                raise
"""


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A folder with eight videos and a sitecustomize.py that takes the system's features away."""
    folder = tmp_path_factory.mktemp("platforms")
    (folder / "videos").mkdir()
    for i in range(8):
        write_video(folder / "videos" / f"{i}.mp4", demo_clip(5, 32, seed=i), 24)
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text(WITHOUT)
    return folder


def run(setup, commands: list[list]) -> str:
    """Run commands one after another in one process."""
    code = "import json, sys; from vidtok.cli.main import main\n"
    code += "if __name__ == '__main__': sys.exit(max(main(command) for command in json.loads(sys.argv[1])))"
    (setup / "run.py").write_text(code)
    lines = json.dumps([[str(argument) for argument in command] for command in commands])
    environment = os.environ | {"PYTHONPATH": str(setup / "without"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, setup / "run.py", lines], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def read_all(folder) -> dict[str, np.ndarray]:
    reader = open_reader(folder)
    return {entry.id: reader.read(i).features for i, entry in enumerate(reader.entries)}


def test_commands_work(setup, tokenizer_path, tmp_path):
    pytest.importorskip("pyarrow")
    video, model = setup / "videos" / "0.mp4", ["--model", tokenizer_path]
    extract = ["extract", setup / "videos", *model, "--threads", 1]
    run(setup, [
        ["info", video],
        ["check", setup / "videos"],
        ["encode", video, "-o", tmp_path / "ids.npz", *model],
        ["decode", tmp_path / "ids.npz", "-o", tmp_path / "a.mp4", *model],
        ["reconstruct", video, "-o", tmp_path / "b.mp4", *model],
        [*extract, "-o", tmp_path / "npz"],  # with decode processes
        [*extract, "-o", tmp_path / "npz", "--workers", 0],  # all are there
        *([*extract, "-o", tmp_path / name, "--container", name, "--workers", 0] for name in ("parquet", "webdataset")),
    ])  # fmt: skip
    vidtok.extract(setup / "videos", tmp_path / "here", model=tokenizer_path, workers=0)
    expected = read_all(tmp_path / "here")
    for name in ("npz", "parquet", "webdataset"):
        features = read_all(tmp_path / name)
        assert len(features) == 8 and features.keys() == expected.keys()
        assert all(np.array_equal(features[id], expected[id]) for id in expected)
        assert {path.name for path in (tmp_path / name).rglob(".*")} == {".claims.d"}
        assert not list((tmp_path / name / ".claims.d").iterdir())


def test_every_module_is_imported(setup):
    environment = os.environ | {"PYTHONPATH": str(setup / "without")}
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("make", [video_locks, FileLocks])
def test_locks_of_any_system(tmp_path, make):
    locks = make(tmp_path)
    locks.wait("b")
    locks.wait("b")  # its own
    assert locks.take("a") and locks.take("b")
    held = "import sys; from pathlib import Path; from vidtok.extraction.output import *; "
    held += f"locks = {type(locks).__name__}(Path(sys.argv[1])); print(*(locks.take(id) for id in 'abc'))"
    command = [sys.executable, "-c", held, tmp_path]
    assert subprocess.check_output(command, text=True).split() == ["False", "False", "True"]
    locks.release("a")
    assert subprocess.check_output(command, text=True).split() == ["True", "False", "True"]
    locks.close()
    assert subprocess.check_output(command, text=True).split() == ["True"] * 3


def test_a_claim_holds_no_file_open(tmp_path):
    if type(video_locks(tmp_path)) is not RecordLocks:
        pytest.skip("record locks are POSIX'")
    locks, before = RecordLocks(tmp_path), len(os.listdir("/proc/self/fd"))
    assert all(locks.take(str(i)) for i in range(2000))
    assert len(os.listdir("/proc/self/fd")) == before and os.listdir(tmp_path) == [".claims"]


def test_cpus_are_counted_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert count_cpus() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cpus() == 1
