"""What every test shares: one thread, a fixed seed, tests that need an accelerator."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in marked:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)  # which a benchmark's script may have changed
    torch.manual_seed(0)


@pytest.fixture
def seeded():
    """Return a maker of CPU generators: seeded(3) twice gives two generators with equal draws."""
    import torch

    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def places():
    """Return a maker of float64 places (n, d) that do not depend on what ran before."""
    import torch

    def make(n=5, d=3, seed=0):
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.randn(n, d, generator=generator, dtype=torch.float64)

    return make
