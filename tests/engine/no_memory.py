"""What memory that there is none of looks like, on the CPU and on CUDA."""

from __future__ import annotations

import torch

from xgr_stream.errors import OutOfMemory

OUT_OF_MEMORY = (
    OutOfMemory("no page is free"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
)
