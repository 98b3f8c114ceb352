"""What every test gets."""

import os

import pytest
import torch

from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    torch.set_num_threads(max(1, os.cpu_count() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.fixture(autouse=True)
def own_thread_count():
    """A command run inside a test may set the number of threads, and sums in another order round differently."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    """A folder with a tiny untrained LFQ tokenizer of 18 bits, stride (4, 8, 8); the same in every run."""
    torch.manual_seed(0)
    net = {"kind": "patch", "width": 32, "blocks": 2, "decoder_blocks": 2}
    path = tmp_path_factory.mktemp("tokenizer")
    VideoTokenizer(TokenizerConfig("tiny", net, {"kind": "lfq", "bits": 18})).save_pretrained(path)
    return str(path)
