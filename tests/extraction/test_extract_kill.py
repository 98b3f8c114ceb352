"""An extraction that is killed, runs out of disk, or shares its folder: the output is that of an undisturbed run."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records import assert_same, read_all

from vidtok.cli.main import main
from vidtok.datasets import demo_clip, write_video
from vidtok.extraction import containers, open_reader
from vidtok.extraction.containers import ShardWriter
from vidtok.extraction.engine import run_extraction
from vidtok.extraction.output import Output
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import ExtractionStats
from vidtok.extraction.webdataset import TarShard

CLIPS = 60
CONTAINERS = ["npz", "parquet", "webdataset"]

# Imports what a run needs once, then forks a process for each: {"args", "out"} -> its id; {"wait": id} -> its status.
SERVER = """
import json, os, sys
import pyarrow.parquet, torch
import vidtok.cli.extract, vidtok.extraction.run, vidtok.files, vidtok.cli.main, vidtok.extraction.containers
torch.set_num_threads(1)
vidtok.extraction.containers.VIDEOS = 7
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    output = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = vidtok.cli.main.main(job["args"])
    sys.stdout.flush()
    os._exit(status)
"""


class Server:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ask(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, args, out):
        return self.ask(args=args, out=str(out))

    def wait(self, pid):
        return self.ask(wait=pid)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(scope="module")
def setup(tmp_path_factory, tokenizer_path):
    """(arguments of a run, records of an undisturbed one)."""
    folder = tmp_path_factory.mktemp("setup")
    (folder / "videos" / "sub").mkdir(parents=True)
    frames = demo_clip(CLIPS + 20, 64)
    for i in range(CLIPS):
        name = f"sub/{i}.mp4" if i % 3 else f"{i}.mp4"
        write_video(folder / "videos" / name, frames[:, :, i : i + 5 + i % 5, : 32 + i % 2, :32], 24)
    args = ["extract", str(folder / "videos"), "--model", tokenizer_path, "--threads", "1", "--workers", "0"]
    assert main([*args, "-o", str(folder / "clean")]) == 0
    clean = read_all(folder / "clean")
    assert len(clean) == CLIPS
    return args, clean


def outputs(folder):
    return [name for _, _, names in os.walk(folder) for name in names if not name.startswith(".")]


def rows(folder):
    """How many records all files of the folder hold together."""
    return sum(len(open_reader(path)) for path in folder.rglob("part-*")) or len(read_all(folder))


def assert_nothing_is_left_over(folder):
    hidden = {path.name for path in folder.rglob(".*")}
    assert hidden == {".claims"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_ten_kills(server, setup, tmp_path, container):
    args, clean = setup
    rng = random.Random(container)
    command = [*args, "-o", str(tmp_path / "out"), "--container", container]
    killed = 0
    while killed < 10:
        before = len(outputs(tmp_path / "out"))
        pid = server.start(command, tmp_path / "log")
        more, deadline = rng.randrange(3 if container == "npz" else 2), time.monotonic() + 60
        while len(outputs(tmp_path / "out")) < before + more and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        killed += server.wait(pid) == -signal.SIGKILL
        log = tmp_path / "log"
        if log.exists() and log.read_text():  # it was faster (or killed before it had one)
            break
    assert killed > 5
    pid = server.start(command, tmp_path / "log")
    assert server.wait(pid) == 0, (tmp_path / "log").read_text()
    assert_same(read_all(tmp_path / "out"), clean)
    assert rows(tmp_path / "out") == CLIPS
    assert_nothing_is_left_over(tmp_path / "out")
    pid = server.start(command, tmp_path / "log")
    assert server.wait(pid) == 0 and f"{CLIPS} were complete" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "container, one_dies", [("npz", False), ("npz", True), ("parquet", False), ("webdataset", True)]
)
def test_two_processes_on_one_folder(server, setup, tmp_path, container, one_dies):
    args, clean = setup
    command = [*args, "-o", str(tmp_path / "out"), "--container", container]
    pids = [server.start(command, tmp_path / f"log{i}") for i in range(2)]
    if one_dies:
        while len(outputs(tmp_path / "out")) < 2:
            time.sleep(0.001)
        os.kill(pids[0], signal.SIGKILL)
    statuses = [server.wait(pid) for pid in pids]
    logs = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    assert statuses[one_dies:] == [0] * (2 - one_dies), logs
    assert_same(read_all(tmp_path / "out"), clean)
    assert rows(tmp_path / "out") == CLIPS
    if not one_dies:
        assert sum(int(re.search(r"extracted (\d+) of", log)[1]) for log in logs) == CLIPS
    if container == "npz" or not one_dies:  # else there is the dead one's shard, until the next run
        assert_nothing_is_left_over(tmp_path / "out")


@pytest.mark.parametrize("container", ["npz", "parquet"])
def test_a_full_disk(setup, tmp_path, capsys, container):
    """A real one, where a file system may be made."""
    args, clean = setup
    disk, size = tmp_path / "disk", "12k" if container == "parquet" else "48k"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk]).returncode:
        pytest.skip("no file system may be mounted")
    try:
        capsys.readouterr()
        command = [*args, "-o", str(disk / "out"), "--container", container]
        assert main(command) == 1
        err = capsys.readouterr().err
        assert err.startswith("vidtok: ") and err.count("\n") == 1 and "No space left" in err
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        assert main(command) == 0
        assert_same(read_all(disk / "out"), clean)
        assert_nothing_is_left_over(disk / "out")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("container", ["npz", "webdataset"])
def test_a_write_that_fails(setup, tmp_path, capsys, monkeypatch, container):
    args, clean = setup
    command = [*args, "-o", str(tmp_path / "out"), "--container", container]
    monkeypatch.setattr("vidtok.extraction.containers.VIDEOS", 7)
    move, moves = (os.replace, os.rename), []

    def full(*paths):
        moves.append(paths)
        if len(moves) == 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(paths[0]))
        return move[0](*paths)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "rename", full)
    assert main(command) == 1
    assert "No space left" in capsys.readouterr().err
    assert_nothing_is_left_over(tmp_path / "out")
    monkeypatch.setattr(os, "replace", move[0])
    monkeypatch.setattr(os, "rename", move[1])
    assert main(command) == 0
    assert_same(read_all(tmp_path / "out"), clean)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_keeps_what_it_has_done(server, setup, tmp_path, stop):
    args, clean = setup
    command = [*args, "-o", str(tmp_path / "out"), "--container", "parquet"]
    pid = server.start(command, tmp_path / "log")
    while len(outputs(tmp_path / "out")) < 3:  # settings.json and two shards of seven
        time.sleep(0.001)
    os.kill(pid, stop)
    assert server.wait(pid) in (0, 130)
    assert_nothing_is_left_over(tmp_path / "out")
    assert server.wait(server.start(command, tmp_path / "log")) == 0
    assert_same(read_all(tmp_path / "out"), clean)


def test_an_interrupt_in_the_middle_of_a_record_leaves_no_damaged_shard(setup, tmp_path, monkeypatch):
    args, clean = setup
    command = [*args, "-o", str(tmp_path / "out"), "--container", "webdataset"]
    add, calls = TarShard.add, []

    def interrupted(self, record):
        calls.append(record)
        add(self, record)
        if len(calls) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(TarShard, "add", interrupted)
    assert main(command) == 130
    assert outputs(tmp_path / "out") == ["settings.json"]
    assert main(command) == 0
    assert_same(read_all(tmp_path / "out"), clean)


def test_an_interrupt_at_any_line_of_a_shard_leaves_nothing_over(setup, tmp_path, monkeypatch):
    """Ctrl-C in front of every line that begins, fills or completes a shard; the next run does what is missing."""
    args, clean = setup
    records = [*clean.values()][:3]
    settings = open_reader(Path(args[1]).parent / "clean").settings
    monkeypatch.setattr("vidtok.extraction.containers.VIDEOS", 2)
    watched = {f.__code__ for f in (ShardWriter.write, ShardWriter.close, ShardWriter._begin, containers.unlock)}
    line, interrupted = 0, 0

    def extract(next_item):
        while (item := next_item()) is not None:
            yield item, [record for record in records if record.id == item.id]

    def run(folder):
        items = [WorkItem(record.id, record.id) for record in records]
        run_extraction(Output(folder, settings, "webdataset", items, ExtractionStats(len(items))), extract)

    def trace(frame, event, _):
        nonlocal line
        if frame.f_code in watched and event == "line":
            line -= 1
            if line == 0:
                raise KeyboardInterrupt
        return trace if frame.f_code in watched or event != "call" else None

    while line <= 0:
        line, folder = interrupted + 1, tmp_path / str(interrupted)
        sys.settrace(trace)
        try:
            run(folder)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        assert_nothing_is_left_over(folder)
        run(folder)
        assert_same(read_all(folder), {record.id: record for record in records})
    assert interrupted > 40
