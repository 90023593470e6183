"""What an exception of the engine means for the worker."""

from __future__ import annotations

from enum import Enum

from xgr_stream.errors import DeviceLost, EngineError, OutOfMemory, is_out_of_memory

_LOST = ("CUDA error", "CUDA driver error", "cuBLAS", "CUBLAS", "CUDNN", "NCCL error", "HIP error")
"""How torch's messages begin, or what they hold, when a GPU gave an error. After most of them every further call in
the process fails too; none is told apart from those here."""


class Fault(Enum):
    """What is to be done about it."""

    MEMORY = "memory"
    """Less at once can work."""
    DEVICE = "device"
    """Nothing will work any more in this process."""
    OTHER = "other"
    """This batch failed; the next may not."""


def fault(error: BaseException) -> Fault:
    """By type where one says it, and by torch's message where none does. Needs no torch."""
    if is_out_of_memory(error):
        return Fault.MEMORY
    if isinstance(error, DeviceLost) or "AcceleratorError" in {kind.__name__ for kind in type(error).__mro__}:
        return Fault.DEVICE
    if isinstance(error, RuntimeError) and any(mark in str(error) for mark in _LOST):
        return Fault.DEVICE
    return Fault.OTHER


def answer_to(error: BaseException) -> EngineError:
    """What the requests of a batch that failed with `error` are told."""
    name = type(error).__name__
    match fault(error):
        case Fault.MEMORY:
            return OutOfMemory(f"the device has no memory for this request now ({name}); try again later")
        case Fault.DEVICE:
            return DeviceLost(f"the device failed ({name}); this worker stops")
    return EngineError(f"the engine failed: {name}")
