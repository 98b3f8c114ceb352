"""Extraction on a Ray cluster of several nodes, some of which are lost: nothing is missing, nothing is there twice.

Run where Ray is installed (pip install 'vidtok[ray]'); the cluster itself, some minutes of starting nodes on a busy
machine, with `pytest -m slow`. Ray gives up on a node that isn't up in 30 seconds.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from records import assert_same, read_all

ray = pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster  # noqa: E402

from vidtok.cli.main import main  # noqa: E402
from vidtok.datasets import demo_clip, write_video  # noqa: E402
from vidtok.extraction import containers, open_reader, ray_engine  # noqa: E402
from vidtok.extraction.output import SETTINGS_FILE as SETTINGS  # noqa: E402
from vidtok.extraction.output import read_failures  # noqa: E402
from vidtok.extraction.ray_output import ActorFiles, ActorOutput, Published, Stored, Target  # noqa: E402
from vidtok.extraction.record import Entry, Settings  # noqa: E402
from vidtok.extraction.sources import WorkItem  # noqa: E402
from vidtok.extraction.stats import ExtractionStats  # noqa: E402
from vidtok.files import RemoteFolder  # noqa: E402
from vidtok.inputs import walk_files  # noqa: E402

CLIPS = 30
FRAMES = sum(5 + i % 5 for i in range(CLIPS))
GIVEN = 3  # by an actor, before it stops


@pytest.fixture(scope="module")
def setup(tmp_path_factory, tokenizer_path):
    """(arguments of a run, records of one without Ray)."""
    folder = tmp_path_factory.mktemp("setup")
    frames = demo_clip(CLIPS + 10, 64)
    (folder / "videos").mkdir()
    for i in range(CLIPS):
        write_video(folder / "videos" / f"{i}.mp4", frames[:, :, i : i + 5 + i % 5, :32, :32], 24)
    args = ["extract", str(folder / "videos"), "--model", tokenizer_path, "--threads", "1", "--workers", "0"]
    assert main([*args, "-o", str(folder / "clean")]) == 0
    return args, read_all(folder / "clean")


@pytest.fixture
def cluster():
    """A head without CPUs, where this process is, and two machines of one."""
    memory = 100 * 1024 * 1024
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
        cluster.wait_for_nodes()
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers can't import a test


class Halting(ray_engine.Worker):
    """An actor that stops in the middle of a batch until the file `gate` is there, and says who and where it is."""

    gate = ""
    given = 0

    def __init__(self, *args):
        containers.VIDEOS = 2  # in a shard
        super().__init__(*args)

    def work(self, items, names):
        for answer in super().work(items, names):
            if self.given == GIVEN:
                Path(f"{self.gate}-{os.getpid()}").touch()
            while self.given >= GIVEN and not os.path.exists(self.gate):
                time.sleep(0.02)
            self.given += 1
            yield answer

    def place(self):
        return os.getpid(), ray.get_runtime_context().get_node_id()


def wait_until(happened):
    end = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("writing, container", [("driver", "npz"), ("actors", "npz"), ("actors", "webdataset")])
def test_a_process_is_killed_and_a_node_removed(cluster, setup, tmp_path, monkeypatch, writing, container):
    cluster, nodes = cluster
    args, clean = setup
    out, gate = tmp_path / "out", tmp_path / "gate"
    monkeypatch.setattr(Halting, "gate", str(gate))
    monkeypatch.setattr(ray_engine, "Worker", Halting)
    monkeypatch.setattr(ray_engine, "BATCH", 2 * GIVEN)
    places, start = [], ray_engine.RayExtractor._start

    def remember(self, number):
        actor, target = start(self, number)
        if not self._closed:
            places.append(ray.get(actor.place.remote()))
        return actor, target

    monkeypatch.setattr(ray_engine.RayExtractor, "_start", remember)
    happened = []

    def misfortune():
        try:
            wait_until(lambda: len(list(tmp_path.glob("gate-*"))) == 2)
            os.kill(places[0][0], signal.SIGKILL)
            happened.append("killed")
            wait_until(lambda: len(list(tmp_path.glob("gate-*"))) == 3)  # a third actor
            assert len(places) == 3
            cluster.remove_node(next(node for node in nodes if node.node_id == places[1][1]), allow_graceful=False)
            happened.append("removed")
        finally:
            gate.touch()

    thread = threading.Thread(target=misfortune)
    thread.start()
    run = [*args, "-o", str(out), "--container", container, "--engine", "ray", "--ray-address", cluster.address]
    run += ["--ray-write", writing]
    try:
        assert main(run) == 0
    finally:
        gate.touch()
        thread.join()
    assert happened == ["killed", "removed"]
    assert_same(read_all(out), clean)
    assert sum(len(open_reader(out / name)) for name in files(out) if name != SETTINGS) == CLIPS
    assert {path.name for path in out.rglob(".*")} == {".claims"}
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert main(run) == 0  # all of it is complete
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == before


@pytest.mark.slow
def test_a_driver_is_killed(setup, tmp_path):
    """It takes its own cluster with it. The next run does what is missing."""
    args, clean = setup
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vidtok", *args, "-o", str(out), "--engine", "ray", "--ray-write", "actors"]
    driver = subprocess.Popen(command)
    try:
        wait_until(lambda: out.is_dir() and len(files(out)) > 5)
    finally:
        driver.kill()
        driver.wait()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0 and " were complete" in finished.stdout, finished.stderr
    assert_same(read_all(out), clean)
    assert {path.name for path in out.rglob(".*")} == {".claims"}


@pytest.mark.parametrize(
    "nodes, gpus, requested, share",
    [
        ([2], 0, {}, (1, 2, 0, 1, 1)),
        ([2], 0, {"actors": 2}, (2, 1, 0, 0, 1)),  # smaller ones, so that both find room
        ([1, 1], 0, {}, (2, 1, 0, 0, 1)),
        ([16, 16], 0, {"workers": 3}, (8, 4, 0, 3, 1)),
        ([16, 16], 4, {}, (4, 8, 1, 7, 1)),
        ([16], 1, {"actors": 3}, (1, 16, 1, 15, 1)),
        ([64], 0, {"videos": 3, "workers": 0, "threads": 4}, (3, 1, 0, 0, 4)),
    ],
)
def test_shares_of_a_cluster(monkeypatch, nodes, gpus, requested, share):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(nodes)), "GPU": float(gpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes])
    requested = {"videos": 100, "actors": None, "workers": None, "threads": None} | requested
    assert ray_engine.share_cluster(**requested) == ray_engine.ActorResources(*share)


class Pretended(ray_engine.RayExtractor):
    """Without a cluster: actors that die over some videos, and report each other."""

    deadly = ("3", "8")

    def _serve(self, number):
        while (batch := self._batches.get()) is not None:
            items, _ = batch
            left = {item.id: item for item in items}
            for item in items:
                if item.id in self.deadly:
                    self.batches.append(len(items))
                    self._results.put(ray_engine._Lost(list(left.values()), "killed"))
                    break
                del left[item.id]
                self._results.put((item.id, ValueError("no") if item.id == "5" else []))
            self._results.put(None)


def test_a_video_that_actors_die_over_has_failed_and_nothing_else(monkeypatch):
    monkeypatch.setattr(ray, "put", lambda model: model)
    Pretended.batches = []
    items = [WorkItem(str(i), f"{i}.mp4") for i in range(40)]
    waiting = list(items)
    share = ray_engine.ActorResources(actors=2, cpus=1, gpus=0, workers=0, threads=1)
    with Pretended(None, None, share, 60, SimpleNamespace(stats=ExtractionStats(len(items)))) as pretended:
        done = list(pretended.extract(lambda: waiting.pop(0) if waiting else None))
        assert list(pretended.extract(lambda: None)) == []
    assert sorted(item.id for item, _ in done) == sorted(item.id for item in items)
    assert all(item in items for item, _ in done)  # with the paths that were given
    failed = {item.id: str(result) for item, result in done if isinstance(result, Exception)}
    assert failed == {"3": "3 actors died over it: killed", "8": "3 actors died over it: killed", "5": "no"}
    assert Pretended.batches.count(1) >= 4  # tried again alone


class FakeActor:
    """A `Worker` in this process that dies at the first message for which `dies` is true, which is lost with it."""

    def __init__(self, worker, dies):
        self.worker, self.dies, self.work = worker, dies, self
        self.messages = iter(())

    def options(self, num_returns):
        return self

    def remote(self, items, names):
        self.messages = self.worker.work(items, names)
        for id, result in self.messages:
            if self.dies(result):
                raise ray.exceptions.RayActorError()
            yield id, result


def at(number, kind):
    """The moment of message `number` of a kind (from 0)."""
    count = itertools.count()
    return lambda result: isinstance(result, kind) and next(count) == number


WRITTEN = type(None)


@pytest.fixture
def fake(monkeypatch):
    """Function that sets the number of actors and how they die, one after the other; it returns the list of them."""
    monkeypatch.setattr(ray_engine, "connect", lambda address: None)
    monkeypatch.setattr(ray_engine, "BATCH", 5)
    monkeypatch.setattr(containers, "VIDEOS", 4)
    for name in ("put", "get", "kill"):
        monkeypatch.setattr(ray, name, lambda value: value)

    def set_deaths(deaths=(), actors=1):
        share = ray_engine.ActorResources(actors=actors, cpus=1, gpus=0, workers=0, threads=1)
        monkeypatch.setattr(ray_engine, "share_cluster", lambda *args: share)
        waiting, started = list(deaths), []

        def start(self, number):
            target = self._output and self._output.target()
            dies = waiting.pop(0) if waiting else lambda result: False
            started.append(FakeActor(ray_engine.Worker(*self._arguments, target), dies))
            return started[-1], target

        monkeypatch.setattr(ray_engine.RayExtractor, "_start", start)
        return started

    return set_deaths


def files(folder):
    return sorted(Path(path).relative_to(folder).as_posix() for path in walk_files(folder, ("",)))


@pytest.mark.parametrize("container", ["npz", "parquet", "webdataset"])
def test_actors_that_write(setup, fake, tmp_path, container, capsys):
    args, clean = setup
    fake(actors=2)
    run = [*args, "-o", str(tmp_path / "out"), "--container", container, "--engine", "ray", "--ray-write", "actors"]
    capsys.readouterr()
    assert main(run) == 0
    out = capsys.readouterr().out
    assert_same(read_all(tmp_path / "out"), clean)
    sizes = sum((tmp_path / "out" / name).stat().st_size for name in files(tmp_path / "out") if name != SETTINGS)
    assert f"extracted {CLIPS} of {CLIPS} videos, {FRAMES} frames" in out and f"{sizes / 1e6:.3g} MB" in out
    assert {path.name for path in (tmp_path / "out").rglob(".*")} == {".claims"}
    assert main(run) == 0  # all of it is complete
    assert f"{CLIPS} were complete" in capsys.readouterr().out


@pytest.mark.parametrize("container", ["npz", "webdataset"])
def test_actors_that_write_and_die(setup, fake, tmp_path, container):
    """One dies before its first message, one with a file that it has not reported, one with several incomplete."""
    args, clean = setup
    out = tmp_path / "out"
    started = fake([at(0, WRITTEN), at(0, Published), at(3, WRITTEN), at(2, Published)])
    published = []
    fence = ActorOutput.fence

    def fence_and_go_on(self, target):
        fence(self, target)
        before = files(out)
        with suppress(FileNotFoundError):
            list(started[-1].messages)  # it was only out of reach, and goes on
            list(started[-1].worker.work([], {}))
        assert files(out) == before
        published.append(len(before))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActorOutput, "fence", fence_and_go_on)
        run = [*args, "-o", str(out), "--container", container, "--engine", "ray", "--ray-write", "actors"]
        assert main(run) == 0
    assert len(started) == 5 and published == sorted(published) and published[1] > published[0]
    assert_same(read_all(out), clean)
    assert sum(len(open_reader(out / name)) for name in files(out) if name != SETTINGS) == CLIPS
    assert {path.name for path in out.rglob(".*")} == {".claims"}


def test_shards_that_every_actor_dies_over(setup, fake, tmp_path, monkeypatch):
    args, _ = setup
    monkeypatch.setattr(ray_engine, "LOSSES", 2)
    monkeypatch.setattr(containers, "VIDEOS", CLIPS)
    out = tmp_path / "out"
    fake([at(CLIPS - 1, WRITTEN), at(CLIPS - 1, WRITTEN)])  # each while it works on another video, which is not lost
    run = [*args, "-o", str(out), "--container", "webdataset", "--engine", "ray", "--ray-write", "actors"]
    assert main(run) == 1
    reasons = [row["reason"] for row in read_failures(out, None)]
    assert len(reasons) == CLIPS - 2 and "2 actors died over it" in reasons[0]


def test_actors_upload_to_an_address(setup, fake, tmp_path, monkeypatch, capsys):
    pytest.importorskip("fsspec")
    args, clean = setup
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path))
    url = f"memory://{tmp_path.name}/tokens"
    for container in ("parquet", "npz"):
        run = [*args, "-o", f"{url}/{container}", "--container", container, "--engine", "ray", "--ray-write", "actors"]
        started = fake([at(1, Published), at(2, WRITTEN)])
        assert main(run) == 0
        assert len(started) == 3 and f"{CLIPS} of {CLIPS} videos, {FRAMES} frames" in capsys.readouterr().out
        remote = RemoteFolder(f"{url}/{container}")
        assert len(files(remote.copy)) < 10  # what an actor that died had uploaded without a message
        assert_same(read_all(remote.fetch()), clean)
        rows = sum(len(open_reader(remote.copy / name)) for name in files(remote.copy) if name != SETTINGS)
        assert rows == CLIPS
        assert main(run) == 0
        assert f"{CLIPS} were complete" in capsys.readouterr().out


MADE_BY = {"model": "t", "weight_hash": "0" * 16, "precision": "fp32", "bits": 18, "stride": (4, 8, 8)}


@pytest.mark.parametrize("container", ["npz", "parquet"])
def test_failures_at_an_address(tmp_path, monkeypatch, container):
    """None is forgotten when an actor is lost, and none remains of a video that an actor has uploaded since."""
    pytest.importorskip("fsspec")
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path))
    settings = Settings(feature="ids", dtype="int32", **MADE_BY)
    items = [WorkItem(id, None) for id in ("a", "b")]
    with RemoteFolder(f"memory://{tmp_path.name}/tokens") as remote:
        output = ActorOutput(remote, settings, container, items, ExtractionStats(2))
        for item in items:
            assert output.next() is item
            output.fail(item, "no frames")
            if item.id == "a":
                remote.send()
        assert output.find_published(["c"]) == {}
        assert [row["name"] for row in read_failures(remote.copy, None)] == ["a", "b"]
        output.close()
        output = ActorOutput(remote, settings, container, items, ExtractionStats(2))
        item = output.next()
        entry = Entry(item.id, None, None, None, None, 1, (8, 8))
        output.take(item, Stored(frames=1, records=1, tokens=1, damage="", entry=entry, file="a.npz", bytes=1))
        output.close()
        assert [row["name"] for row in read_failures(remote.copy, None)] == ["b"]


def test_actors_of_a_killed_driver_publish_nothing(setup, tmp_path):
    args, clean = setup
    records = [*clean.values()]
    items = [WorkItem(record.id, record.id) for record in records]
    settings = open_reader(Path(args[1]).parent / "clean").settings
    drivers = []

    def start():
        output = ActorOutput(tmp_path, settings, "webdataset", items, ExtractionStats(len(items)))
        actor = ActorFiles(output.target())
        assert [message for message in actor.write(records[0].id, "", records[:1])] == [(records[0].id, None)]
        drivers.append(output)
        return actor

    alive, orphan = start(), start()
    drivers[1]._lock.release()  # as the system does for a killed process
    another = start()
    with pytest.raises(FileNotFoundError):
        list(orphan.complete())
    assert files(tmp_path) == [SETTINGS]
    for actor in (alive, another):
        ((id, message),) = actor.complete()
        (stored,) = message.videos
        assert id == records[0].id and (tmp_path / stored.file).stat().st_size == stored.bytes


def test_an_actor_without_the_folder(tmp_path):
    with pytest.raises(ValueError, match="doesn't see /nowhere: let the driver write, or give a folder"):
        ActorFiles(Target("npz", "/nowhere", ".ray-1/2"))


def test_what_an_actor_raises_is_raised(monkeypatch):
    class Raising(Pretended):
        def _serve(self, number):
            self._results.put(ValueError("of ours"))

    monkeypatch.setattr(ray, "put", lambda model: model)
    share = ray_engine.ActorResources(actors=1, cpus=1, gpus=0, workers=0, threads=1)
    with (
        Raising(None, None, share, 60, SimpleNamespace(stats=ExtractionStats(1))) as raising,
        pytest.raises(ValueError, match="of ours"),
    ):
        list(raising.extract(iter([WorkItem("a", "a.mp4"), None]).__next__))


def test_no_cluster_is_one_line():
    with pytest.raises(ValueError, match=r"no Ray cluster at '127.0.0.1:1': .*refused"):
        ray_engine.connect("127.0.0.1:1")
