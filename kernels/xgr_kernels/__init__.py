"""Tensor functions of a generative recommender's decode: paged KV, beams over a shared prefix, exact beam selection.

Pure functions of tensors: torch, and triton where there is CUDA. Each folder holds one op: the wrapper that checks and
dispatches, `reference.py` in plain torch (which is the CPU's path), `kernel.py` and its benchmark.
"""

from xgr_kernels.append_attention import append_attention
from xgr_kernels.beam_select import BeamSelection, beam_select
from xgr_kernels.kv_write import kv_write
from xgr_kernels.staged_attention import staged_attention

__all__ = ["BeamSelection", "append_attention", "beam_select", "kv_write", "staged_attention"]
