import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Bitwise claims are claims about one order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
