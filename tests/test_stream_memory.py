"""Peak memory doesn't grow with the length of a stream. Measured in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys, torch
sys.path.insert(0, sys.argv[3])
from test_tokenizer import build
torch.set_num_threads(1)
tokenizer, chunks = build(sys.argv[1]), int(sys.argv[2])
ids = tokenizer.stream_encode(torch.zeros(1, 3, 8, 64, 64) for _ in range(chunks))
frames = 0
try:
    for video in tokenizer.stream_decode(ids):
        frames += video.shape[2]
except ValueError:  # 8n frames are no 1 + 4k: the last three are left over
    pass
assert frames == 8 * chunks - 3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(net: str, chunks: int) -> int:
    """Kilobytes."""
    # glibc would keep freed blocks of this size for itself, more or fewer by chance.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, net, str(chunks), str(Path(__file__).parent)]
    out = subprocess.run(command, capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    return int(out.stdout)


@pytest.mark.parametrize(("net", "short", "long"), [("patch", 20, 60), ("magvit2", 6, 18)])
def test_memory_is_flat_in_clip_length(net, short, long):
    """96 more frames of 64 x 64 are 5 MB of pixels alone, and dozens of times that in activations."""
    assert peak(net, long) - peak(net, short) < 8_000
