"""A process that dies in the middle of a run: the job ends, says so, and goes on when it is started again."""

import os
import signal
import subprocess
import sys
import time

import psutil
import torch

TINY = ["data=digits", "data.crop=16", "data.frames=5", "data.batch_size=4", "data.image_batch_size=4", "loss=starter"]
TINY += ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1", "trainer.log_seconds=0"]


def test_a_killed_process_ends_the_job_which_then_resumes(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "vidtok", "train", "tokenizer", f"run={run}", *TINY, "trainer.max_steps=60"]
    command += ["trainer.save_steps=2"]
    options = {"stderr": subprocess.PIPE, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    with open(tmp_path / "out.txt", "w") as out:
        job = subprocess.Popen(command, stdout=out, **options)
    while "step 4 " not in (tmp_path / "out.txt").read_text():
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    workers = [child for child in psutil.Process(job.pid).children() if "RANK" in child.environ()]
    next(worker for worker in workers if worker.environ()["RANK"] == "1").send_signal(signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "vidtok: process 0 can't reach the others, of which one has ended" in errors, errors
    assert not any(worker.is_running() for worker in workers)
    step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert 2 <= step < 60
    again = subprocess.run(command, stdout=subprocess.PIPE, **options)
    assert again.returncode == 0, again.stderr
    assert f"resumed from step {step}" in again.stdout and "done at step 60" in again.stdout
