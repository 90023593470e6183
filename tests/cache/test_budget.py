"""A budget that is more memory than can be had is named by its setting; what else fails is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine.no_memory import OUT_OF_MEMORY
from xgr_stream.cache.budget import within_budget
from xgr_stream.errors import ConfigError


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_there_is_none_of_is_named(error: Exception) -> None:
    says = r"^cache.host_bytes must be memory that there is, not 7 bytes: "
    with pytest.raises(ConfigError, match=says), within_budget("host_bytes", 7):
        raise error


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, 1 << 100])
def test_so_is_what_can_not_be_counted(size: int) -> None:
    for make in (lambda: torch.empty(size, 1 << 12), lambda: np.empty((size, 1 << 12))):
        says = rf"^cache.budget_bytes must be memory that there is, not {size} bytes: "
        with pytest.raises(ConfigError, match=says), within_budget("budget_bytes", size):
            make()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), KeyError("pages")])
def test_what_else_fails_is_no_matter_of_a_budget(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, within_budget("budget_bytes", 7):
        raise error
    assert raised.value is error
