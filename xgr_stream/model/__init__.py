"""Decoders of the Qwen3, Qwen2 and Llama families from Hugging Face directories, and events as their tokens."""

from xgr_stream.model.config import ModelConfig
from xgr_stream.model.decoder import Attend, Decoder
from xgr_stream.model.load import Model, build_model, load_model, save_checkpoint
from xgr_stream.model.settings import Settings
from xgr_stream.model.tokens import ItemTokens

__all__ = [
    "Attend",
    "Decoder",
    "ItemTokens",
    "Model",
    "ModelConfig",
    "Settings",
    "build_model",
    "load_model",
    "save_checkpoint",
]
