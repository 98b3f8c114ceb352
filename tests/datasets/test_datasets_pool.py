"""A decoder that hangs or crashes hurts nobody but its own file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from vidtok.datasets import DecodePool, VideoError
from vidtok.datasets.loading import SharedMemoryPool, pack


def answer(job):
    """A reader that does to its file what the file's name says."""
    if job == "sleeps":
        time.sleep(1e6)
    if job == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "exits":
        os._exit(3)
    if job == "broken":
        raise VideoError(job, "no good")
    if job == "bug":
        raise KeyError("oops")
    if job == "slow":
        time.sleep(0.3)
    if isinstance(job, Path):  # waits for a second process
        (job / str(os.getpid())).touch()
        while len(list(job.iterdir())) < 2:
            time.sleep(0.01)
    if isinstance(job, int):
        array = np.full((job, 7), job, np.int16)
        return {"tensor": torch.full((3, job), float(job)), "array": array.T, "empty": array[:0], "half": array[:, ::2]}
    return job, os.getpid()


def test_answers_come_in_order_from_several_processes(tmp_path):
    with DecodePool(answer, 2, time_limit=60) as pool:
        jobs = ["slow", *map(str, range(20))]
        done = list(pool.imap(iter(jobs)))
        assert [job for job, _ in done] == jobs == [value[0] for _, value in done]
        assert {value[1] for _, value in pool.imap([tmp_path, tmp_path], queue=1)} == set(
            map(int, os.listdir(tmp_path))
        )
        assert len(os.listdir(tmp_path)) == 2 and os.getpid() not in map(int, os.listdir(tmp_path))
        assert next(pool.imap(["again"]))[1][0] == "again" and list(pool.imap([])) == []


def test_stuck_and_crashed_ones_are_replaced_and_reported():
    with DecodePool(answer, 2, time_limit=2.0) as pool:
        done = dict(pool.imap(["a", "sleeps", "b", "crashes", "exits", "broken", "c"]))
        assert [done[job][0] for job in "abc"] == ["a", "b", "c"]
        reasons = {job: str(done[job]) for job in ("sleeps", "crashes", "exits", "broken")}
        assert all(isinstance(done[job], VideoError) for job in reasons)
        assert reasons == {
            "sleeps": "sleeps: no result within 2 s; decoder killed",
            "crashes": "crashes: the decoder crashed (SIGSEGV)",
            "exits": "exits: the decoder crashed (exit status 3)",
            "broken": "broken: no good",
        }
        start = time.monotonic()
        assert [job for job, _ in pool.imap(["sleeps"] * 2 + ["d"])] == ["sleeps", "sleeps", "d"]
        assert time.monotonic() - start < 30


def test_the_queue_of_a_killed_process_goes_to_the_next():
    with DecodePool(answer, 2, time_limit=2.0) as pool:
        jobs = ["a", "b", "sleeps", "crashes", "c", "d", "exits", "e"]
        done = list(pool.imap(jobs, ahead=8, queue=8))
        assert [job for job, _ in done] == jobs
        assert [job for job, value in done if isinstance(value, VideoError)] == ["sleeps", "crashes", "exits"]


def test_arrays_come_back_as_they_were_and_stay():
    """Through shared memory that is used again: not as long as anybody looks into it."""
    sizes = [50, 50, 3, 800, 800, 20, 20, 800, 1, 5000, 5000, 0]
    with DecodePool(answer, 2, time_limit=60) as pool:
        kept = [value for _, value in pool.imap(sizes * 3)]
        seen_before = [value["tensor"][1:, ::2] for value in kept]  # views outlive what they look into
    for size, value in zip(sizes * 3, kept, strict=True):
        expected = answer(size)
        for key in ("array", "empty", "half"):
            assert value[key].dtype == np.int16
            np.testing.assert_array_equal(value[key], expected[key])
        assert torch.equal(value["tensor"], expected["tensor"])
        value["tensor"] += 1
    del kept, value
    for size, view in zip(sizes * 3, seen_before, strict=True):
        assert torch.equal(view, torch.full((2, (size + 1) // 2), size + 1.0))


def test_a_slot_is_free_when_the_last_view_is_gone():
    slots = SharedMemoryPool()
    assert slots.take() is None
    sent = {"x": torch.ones(100), "y": [np.zeros(3)]}
    slots.unpack(pack(sent, None), None)  # the first one tells how large they are
    slot = slots.take()
    value = slots.unpack(pack(sent, slot.memory), slot)
    view = value["x"][50:]
    assert value["x"].data_ptr() == slot.memory.data_ptr()
    del value
    assert slots.take() is not slot and view.sum() == 50
    del view
    assert slots.take() is slot


def test_without_shared_memory_answers_come_through_the_pipe(monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with DecodePool(answer, 1, time_limit=60) as pool:
        for size, value in pool.imap([5, 50, 500]):
            assert torch.equal(value["tensor"], answer(size)["tensor"])


def test_a_bug_is_raised_with_its_traceback():
    with DecodePool(answer, 1, time_limit=60) as pool, pytest.raises(RuntimeError, match="KeyError: 'oops'"):
        list(pool.imap(["bug"]))


def test_it_reads_no_further_ahead_than_said():
    taken = []
    with DecodePool(answer, 1, time_limit=60) as pool:
        stream = pool.imap((taken.append(i) or str(i) for i in range(50)), ahead=3)
        for i in range(5):
            next(stream)
            assert len(taken) <= i + 4


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from vidtok.datasets import DecodePool\n"
        "def hang(job):\n"
        "    import os\n"
        "    open(job, 'w').write(str(os.getpid()))\n"
        "    time.sleep(1e6)\n"
        "if __name__ == '__main__':\n"
        "    list(DecodePool(hang, 1, 1e6).imap([sys.argv[1]]))\n"
    )
    parent = subprocess.Popen([sys.executable, script, tmp_path / "pid"])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("wrong", [{"workers": 0, "time_limit": 1}, {"workers": 1, "time_limit": 0}])
def test_bad_arguments(wrong):
    with pytest.raises(ValueError):
        DecodePool(answer, **wrong)


def test_answers_of_an_abandoned_run_are_not_taken_for_new_ones():
    with DecodePool(answer, 1, time_limit=60) as pool:
        assert next(pool.imap(["a", "slow", "b"]))[0] == "a"
        assert [value[0] for _, value in pool.imap(["c", "d"])] == ["c", "d"]
