"""What every test gets."""

import pytest
import torch


@pytest.fixture(autouse=True)
def own_thread_count():
    """A command run inside a test may set the number of threads, and sums in another order round differently."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
