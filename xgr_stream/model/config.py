"""The shape of a decoder, read from a Hugging Face config.json."""

from __future__ import annotations

from dataclasses import dataclass

from xgr_stream.errors import CheckpointError
from xgr_stream.model.fields import Fields
from xgr_stream.model.rope import Rope, parse_rope

MODEL_TYPES = ("qwen3", "qwen2", "llama")
MAX_LAYERS = 1024
MAX_POSITIONS = 2**17
"""Positions that are served of a model made for more: the table of RoPE takes 64 MiB at this and heads of 128."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the decoder computes. Names without a unit count elements."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    """Tokens that fit into one context: max_position_embeddings, at most `MAX_POSITIONS`."""
    rms_eps: float
    rope: Rope
    tied: bool
    """The head is the embedding."""
    qk_norm: bool
    qkv_bias: bool
    output_bias: bool
    """Of the attention's output projection."""
    mlp_bias: bool

    @classmethod
    def from_json(cls, value: object) -> ModelConfig:
        """Reads the parsed config.json of transformers 4 or 5. Raises `CheckpointError` for anything that would
        make the decoder compute something else than transformers does."""
        config = Fields(value, "config.json")
        model_type = config.choice("model_type", MODEL_TYPES)
        _refuse_unsupported(config)
        hidden_size = config.integer("hidden_size", least=1)
        num_heads = config.integer("num_attention_heads", least=1)
        num_kv_heads = config.integer("num_key_value_heads", num_heads, least=1)
        if num_heads % num_kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads "
                f"({num_kv_heads})"
            )
        # transformers' own default: Qwen3 fixes the size of a head, the others divide the hidden size.
        head_dim = config.integer("head_dim", 128 if model_type == "qwen3" else hidden_size // num_heads, least=2)
        if head_dim % 2:
            raise CheckpointError(f"config.json: head_dim must be even for RoPE, not {head_dim}")
        max_positions = config.integer("max_position_embeddings", least=1)
        attention_bias = model_type != "qwen2" and config.boolean("attention_bias", False)
        return cls(
            model_type=model_type,
            vocab_size=config.integer("vocab_size", least=1),
            hidden_size=hidden_size,
            intermediate_size=config.integer("intermediate_size", least=1),
            num_layers=config.integer("num_hidden_layers", least=1, most=MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_positions=min(max_positions, MAX_POSITIONS),
            rms_eps=config.positive("rms_norm_eps", 1e-6),
            rope=parse_rope(config, max_positions),
            tied=config.boolean("tie_word_embeddings", False),
            qk_norm=model_type == "qwen3",
            qkv_bias=model_type == "qwen2" or attention_bias,
            output_bias=attention_bias,
            mlp_bias=model_type == "llama" and config.boolean("mlp_bias", False),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this config holds, by its Hugging Face name."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer_shapes().items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        projections = {
            "self_attn.q_proj": ((queries, hidden), self.qkv_bias),
            "self_attn.k_proj": ((keys, hidden), self.qkv_bias),
            "self_attn.v_proj": ((keys, hidden), self.qkv_bias),
            "self_attn.o_proj": ((hidden, queries), self.output_bias),
            "mlp.gate_proj": ((inner, hidden), self.mlp_bias),
            "mlp.up_proj": ((inner, hidden), self.mlp_bias),
            "mlp.down_proj": ((hidden, inner), self.mlp_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        for name, (shape, bias) in projections.items():
            shapes[f"{name}.weight"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[:1]
        if self.qk_norm:
            shapes |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        return shapes


def _refuse_unsupported(config: Fields) -> None:
    if config.has("quantization_config"):
        raise CheckpointError("config.json: quantization_config is not supported; save the checkpoint unquantised")
    config.choice("hidden_act", ("silu",), "silu")
    if config.has("layer_types"):
        kinds = config.raw("layer_types")
        slides = not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
    else:
        slides = (
            config.boolean("use_sliding_window", False)
            and config.has("sliding_window")
            and config.integer("max_window_layers", 0) < config.integer("num_hidden_layers", least=1)
        )
    if slides:
        raise CheckpointError("config.json: sliding-window attention is not supported; all layers must see everything")
