"""What every test gets: seeded generators, poisoned memory, and no green run without the accelerator it needs."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import tests.profiles  # noqa: F401  loads hypothesis's profile
from tests.brokers import broker, kafka, pytest_configure_node  # noqa: F401  fixtures and a hook

# Read when triton is imported, which no test module has done yet: the kernels run in its interpreter without a GPU.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)  # the tests run in as many processes as there are cores


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(20)
    np.random.seed(20)
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """A command silences whole libraries, which is its own process's affair elsewhere: no later test is to miss what
    they say."""
    before = {logger: logger.level for logger in _loggers()}
    yield
    for logger in _loggers():
        if logger.level != before.get(logger, logging.NOTSET):
            logger.setLevel(before.get(logger, logging.NOTSET))


def _loggers() -> list[logging.Logger]:
    named = logging.root.manager.loggerDict.values()
    return [logging.root, *(one for one in named if isinstance(one, logging.Logger))]


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory() -> None:
    """`torch.empty` returns NaN and huge integers, so that a kernel that leaves part of its output unwritten fails.

    torch does this only together with its deterministic algorithms; operations that have none merely warn. Its
    `use_deterministic_algorithms` says so to the compiler too, whose import takes every process 4 s."""
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_finish() -> None:
    """Modules and tests stay as long as the process: no collection of garbage looks at them again. A full one took
    0.3 s of CPU time, and the benches ask for one before each thing that they time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    reason = "needs CUDA, and torch sees no device"
    if os.environ.get("XGR_REQUIRE_GPU") == "1":
        pytest.fail(f"{reason} (XGR_REQUIRE_GPU=1 forbids skipping)", pytrace=False)
    pytest.skip(reason)
