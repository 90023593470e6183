"""Tensor functions of a generative recommender's decode: paged KV, beams over a shared prefix, exact beam selection.

Pure functions of tensors: torch, and triton where there is CUDA. Each folder holds one op: the wrapper that checks and
dispatches, `reference.py` in plain torch (which is the CPU's path), `kernel.py` and its benchmark; some a `cpu.c`,
which a CPU takes instead of the reference where there is a C compiler.
"""

from xgr_kernels.append_attention import append_attention, plan_append_attention
from xgr_kernels.beam_descend import BeamDescent, beam_descend
from xgr_kernels.beam_perturb import PerturbedChildren, beam_perturb
from xgr_kernels.beam_select import BeamSelection, beam_select
from xgr_kernels.gate_up_silu import gate_up_silu
from xgr_kernels.kv_write import kv_write, plan_kv_write
from xgr_kernels.legal_normalizer import legal_normalizer
from xgr_kernels.mask_exclude import mask_exclude
from xgr_kernels.mask_flip import mask_flip
from xgr_kernels.node_masks import NodeMasks
from xgr_kernels.quantize_rows import quantize_rows
from xgr_kernels.rms_norm import rms_norm, rms_norm_fp8
from xgr_kernels.silu_mul import silu_mul, silu_mul_fp8
from xgr_kernels.staged_attention import plan_staged_attention, staged_attention, whole_prefixes

__all__ = [
    "BeamDescent",
    "BeamSelection",
    "NodeMasks",
    "PerturbedChildren",
    "append_attention",
    "beam_descend",
    "beam_perturb",
    "beam_select",
    "gate_up_silu",
    "kv_write",
    "legal_normalizer",
    "mask_exclude",
    "mask_flip",
    "plan_append_attention",
    "plan_kv_write",
    "plan_staged_attention",
    "quantize_rows",
    "rms_norm",
    "rms_norm_fp8",
    "silu_mul",
    "silu_mul_fp8",
    "staged_attention",
    "whole_prefixes",
]
