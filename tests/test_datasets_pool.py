"""A decoder that hangs or crashes hurts nobody but its own file."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vidtok.datasets import DecodePool, VideoError


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
    return job, os.getpid()


def test_answers_come_in_order_from_several_processes():
    with DecodePool(answer, 2, time_limit=60) as pool:
        jobs = ["slow", *map(str, range(20))]
        done = list(pool.imap(iter(jobs)))
        assert [job for job, _ in done] == jobs == [value[0] for _, value in done]
        assert len({value[1] for _, value in done}) == 2 and os.getpid() not in {value[1] for _, value in done}
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
