"""CUDA C++ beside Triton: compiled when first used by NVRTC and launched by the driver, which NVIDIA's `cuda-bindings`
and PyTorch's CUDA wheels bring. Where they are not there, Triton's kernels serve."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ARCHITECTURE = "sm_90a"
TensorMap = ctypes.c_ubyte * 128


class Kernel:
    """A function of a CUDA C++ file that takes one structure, on one device."""

    def __init__(
        self, source: Path, name: str, threads: int, shared_bytes: int, definitions: Sequence[str], device: torch.device
    ) -> None:
        driver = _driver()
        self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._device, self._threads, self._shared_bytes = device, threads, shared_bytes
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        code = _compiled(source.read_text(), source.name, definitions)
        with torch.cuda.device(device):
            self._module = _loaded(code)
            self._function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
            _checked(driver.cuFuncSetAttribute(self._function, most, shared_bytes))

    def launch(self, blocks: int, argument: ctypes.Structure, *, dependent: bool) -> None:
        """On the device's current stream; `dependent`: it may begin before the kernel in front of it ends, for which it
        waits itself."""
        driver = _driver()
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self._threads, 1, 1
        config.sharedMemBytes = self._shared_bytes
        config.hStream = torch.cuda.current_stream(self._device).cuda_stream
        if dependent:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        _checked(driver.cuLaunchKernelEx(config, self._function, ctypes.addressof(arguments), 0))


@functools.cache
def available(device: torch.device) -> bool:
    """Whether CUDA C++ can be compiled and loaded; if not, that is logged. What a compiler makes that is newer than the
    driver can't be loaded."""
    try:
        code = _compiled('extern "C" __global__ void nothing() {}', "nothing.cu", ())
        with torch.cuda.device(device):
            _loaded(code)
    except (ImportError, RuntimeError) as error:  # cuda-bindings' own for a library that is not there is one of them
        logger.warning("no CUDA C++, Triton's kernels are used instead: %s", error)
        return False
    return True


def swizzled_rows(matrix: Tensor, box: tuple[int, int]) -> ctypes.Array[ctypes.c_ubyte]:
    """The TensorMap by which the copy engine fetches `box` (rows, columns: 128 bytes) of a matrix
    [rows, columns], contiguous, in 16 bits, swizzled as the matrix units read it."""
    driver = _driver()
    kinds = driver.CUtensorMapDataType
    kind = {
        torch.bfloat16: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float16: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    }[matrix.dtype]
    (rows, columns), (box_rows, box_columns) = matrix.shape, box
    long, short = driver.cuuint64_t, driver.cuuint32_t
    tensor_map = _checked(
        driver.cuTensorMapEncodeTiled(
            kind, 2, matrix.data_ptr(), [long(columns), long(rows)], [long(columns * matrix.element_size())],
            [short(box_columns), short(box_rows)], [short(1), short(1)],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )  # fmt: skip
    return TensorMap.from_buffer_copy(ctypes.string_at(tensor_map.getPtr(), ctypes.sizeof(TensorMap)))


def _loaded(code: bytes) -> Any:
    """The module, on the current device."""
    torch.cuda.current_stream()  # a context for what follows
    return _checked(_driver().cuModuleLoadData(code))


def _compiled(text: str, name: str, definitions: Sequence[str]) -> bytes:
    """Machine code, in about a second. Raises RuntimeError with what the compiler said."""
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    program = _checked(nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []))
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), *(f"-D{own}".encode() for own in definitions)]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if result:
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{name} can't be compiled: {log.decode(errors='replace')}")
    code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return bytes(code)


def _driver() -> Any:
    return importlib.import_module("cuda.bindings.driver")


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the bindings returned, behind its status. Raises RuntimeError if it failed."""
    status, *values = result
    if status:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
