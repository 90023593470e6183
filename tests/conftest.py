"""What every test gets: seeded generators, poisoned memory, and no green run without the accelerator it needs."""

from __future__ import annotations

import importlib.util
import os
import random
import warnings

import hypothesis
import numpy as np
import pytest
import torch

# Read when triton is imported, which no test module has done yet: the kernels run in its interpreter without a GPU.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The machines that run these tests are shared: a slow example is no failure, nor are examples that are slow to draw
# (the first strings of a fresh checkout wait for hypothesis's tables of characters). On CI a failure must be one that
# the next run shows again.
hypothesis.settings.register_profile(
    "xgr",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
hypothesis.settings.load_profile("xgr")

torch.set_num_threads(1)  # the tests run in as many processes as there are cores


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(20)
    np.random.seed(20)
    torch.manual_seed(20)


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory() -> None:
    """`torch.empty` returns NaN and huge integers, so that a kernel that leaves part of its output unwritten fails.

    torch does this only together with its deterministic algorithms; operations that have none merely warn."""
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    reason = "needs CUDA, and torch sees no device"
    if os.environ.get("XGR_REQUIRE_GPU") == "1":
        pytest.fail(f"{reason} (XGR_REQUIRE_GPU=1 forbids skipping)", pytrace=False)
    pytest.skip(reason)
