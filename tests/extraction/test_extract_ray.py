"""Extraction on a Ray cluster of several nodes, some of which are lost: nothing is missing, nothing is there twice.

Run where Ray is installed (pip install 'vidtok[ray]'); the cluster itself, some minutes of starting nodes on a busy
machine, with `pytest -m slow`. Ray gives up on a node that isn't up in 30 seconds.
"""

import os
import signal
import sys
import threading
import time

import pytest
from records import assert_same, read_all

ray = pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster  # noqa: E402

from vidtok.cli.main import main  # noqa: E402
from vidtok.datasets import demo_clip, write_video  # noqa: E402
from vidtok.extraction import ray_engine  # noqa: E402
from vidtok.extraction.sources import WorkItem  # noqa: E402
from vidtok.extraction.stats import ExtractionStats  # noqa: E402

CLIPS = 30
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

    def work(self, items):
        for answer in super().work(items):
            while self.given >= GIVEN and not os.path.exists(self.gate):
                time.sleep(0.02)
            self.given += 1
            yield answer

    def place(self):
        return os.getpid(), ray.get_runtime_context().get_node_id()


def count(folder):
    return len([name for _, _, names in os.walk(folder) for name in names if name.endswith(".npz")])


def wait_until(happened):
    end = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_process_is_killed_and_a_node_removed(cluster, setup, tmp_path, monkeypatch):
    cluster, nodes = cluster
    args, clean = setup
    out, gate = tmp_path / "out", tmp_path / "gate"
    monkeypatch.setattr(Halting, "gate", str(gate))
    monkeypatch.setattr(ray_engine, "Worker", Halting)
    monkeypatch.setattr(ray_engine, "BATCH", 2 * GIVEN)
    places, start = [], ray_engine.RayExtractor._start

    def remember(self, number):
        actor = start(self, number)
        if not self._closed:
            places.append(ray.get(actor.place.remote()))
        return actor

    monkeypatch.setattr(ray_engine.RayExtractor, "_start", remember)
    happened = []

    def misfortune():
        try:
            wait_until(lambda: count(out) == 2 * GIVEN)
            os.kill(places[0][0], signal.SIGKILL)
            happened.append("killed")
            wait_until(lambda: count(out) == 3 * GIVEN)  # by a third actor
            assert len(places) == 3
            cluster.remove_node(next(node for node in nodes if node.node_id == places[1][1]), allow_graceful=False)
            happened.append("removed")
        finally:
            gate.touch()

    thread = threading.Thread(target=misfortune)
    thread.start()
    run = [*args, "-o", str(out), "--engine", "ray", "--ray-address", cluster.address]
    try:
        assert main(run) == 0
    finally:
        gate.touch()
        thread.join()
    assert happened == ["killed", "removed"]
    assert_same(read_all(out), clean)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert main(run) == 0  # all of it is complete
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == before


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
        while (items := self._batches.get()) is not None:
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
    with Pretended(None, None, share, 60, ExtractionStats(len(items))) as pretended:
        done = list(pretended.extract(lambda: waiting.pop(0) if waiting else None))
        assert list(pretended.extract(lambda: None)) == []
    assert sorted(item.id for item, _ in done) == sorted(item.id for item in items)
    assert all(item in items for item, _ in done)  # with the paths that were given
    failed = {item.id: str(result) for item, result in done if isinstance(result, Exception)}
    assert failed == {"3": "3 actors died over it: killed", "8": "3 actors died over it: killed", "5": "no"}
    assert Pretended.batches.count(1) >= 4  # tried again alone


def test_what_an_actor_raises_is_raised(monkeypatch):
    class Raising(Pretended):
        def _serve(self, number):
            self._results.put(ValueError("of ours"))

    monkeypatch.setattr(ray, "put", lambda model: model)
    share = ray_engine.ActorResources(actors=1, cpus=1, gpus=0, workers=0, threads=1)
    with Raising(None, None, share, 60, ExtractionStats(1)) as raising, pytest.raises(ValueError, match="of ours"):
        list(raising.extract(iter([WorkItem("a", "a.mp4"), None]).__next__))


def test_no_cluster_is_one_line():
    with pytest.raises(ValueError, match=r"no Ray cluster at '127.0.0.1:1': .*refused"):
        ray_engine.connect("127.0.0.1:1")
