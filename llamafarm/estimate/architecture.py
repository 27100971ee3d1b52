"""The sizes of a decoder-only transformer, from its `config.json`: every weight matrix, counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamafarm.errors import ModelError, one_of


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer that stands in every transformer layer.

    Attributes:
        name: Last part of its path, e.g. `q_proj`.
        inputs: Features that go in.
        outputs: Features that come out.
        count: How often it stands in one transformer layer (experts).
        bias: Whether it has one.
    """

    name: str
    inputs: int
    outputs: int
    count: int = 1
    bias: bool = False

    @property
    def parameters(self) -> int:
        """In one transformer layer."""
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a model.

    Attributes:
        model_type: As transformers names it.
        layers: Transformer layers.
        hidden: Size of the residual stream.
        intermediate: Size within the feed-forward block (of one expert).
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Size of a head.
        vocabulary: Rows of the embedding.
        tied: The output head is the embedding.
        linears: Those of one transformer layer.
        norms: Parameters of normalizations and the like in one transformer layer.
        outer: Parameters outside of the layers besides embedding and head: the last norm, learned positions.
        head_bias: Parameters of the output head's bias.
        experts_per_token: Experts that a token goes through; 0 for a dense model.
    """

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    linears: tuple[Linear, ...]
    norms: int
    outer: int
    head_bias: int = 0
    experts_per_token: int = 0

    @property
    def linear_parameters(self) -> int:
        """Of the linear layers of all transformer layers: what quantization packs, and LoRA stands beside."""
        return self.layers * sum(linear.parameters for linear in self.linears)

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and of the output head where it is another matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.head_bias

    @property
    def parameters(self) -> int:
        """All of the model."""
        return self.linear_parameters + self.embedding_parameters + self.layers * self.norms + self.outer

    @property
    def active_parameters(self) -> int:
        """Those of the linear layers and the head that take part in one token's products."""
        active = sum(
            linear.parameters * min(1.0, self.experts_per_token / linear.count)
            if linear.count > 1
            else linear.parameters
            for linear in self.linears
        )
        return round(self.layers * active) + self.vocabulary * self.hidden


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """The sizes that a `config.json` describes.

    Raises:
        ModelError: If it is of no architecture that is known here, or a size is missing.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    reader = _READERS.get(model_type)
    if reader is None:
        known = one_of(sorted(_READERS))
        raise ModelError.of(
            "LF-MODEL-160", f"no sizes are known for the architecture {model_type!r}", hint=f"known are {known}"
        )
    try:
        return reader(model_type, text)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        message = f"config.json of a {model_type} model does not give its sizes: {error}"
        raise ModelError.of("LF-MODEL-161", message, hint="give the folder of a whole model") from None


def _llama(model_type: str, config: Mapping[str, Any]) -> Architecture:
    """Llama and its descendants: gated feed-forward, grouped queries, RMSNorm."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    intermediate = int(config["intermediate_size"])
    attention_bias = bool(config.get("attention_bias", False))
    qkv_bias = attention_bias or model_type in ("qwen2", "qwen2_moe")
    mlp_bias = bool(config.get("mlp_bias", False))
    experts, per_token = _experts(model_type, config)
    inner = int(config.get("moe_intermediate_size") or intermediate) if experts > 1 else intermediate
    linears = [
        Linear("q_proj", hidden, heads * head_dim, bias=qkv_bias),
        Linear("k_proj", hidden, kv_heads * head_dim, bias=qkv_bias),
        Linear("v_proj", hidden, kv_heads * head_dim, bias=qkv_bias),
        Linear("o_proj", heads * head_dim, hidden, bias=attention_bias),
        Linear("gate_proj", hidden, inner, experts, bias=mlp_bias),
        Linear("up_proj", hidden, inner, experts, bias=mlp_bias),
        Linear("down_proj", inner, hidden, experts, bias=mlp_bias),
    ]
    norms = hidden * (4 if model_type in ("gemma2", "gemma3_text") else 2)
    if model_type in ("qwen3", "qwen3_moe", "gemma3_text"):
        norms += 2 * head_dim
    if experts > 1:
        norms += experts * hidden  # the router
    return _architecture(model_type, config, (linears, norms, hidden), (heads, kv_heads, head_dim), inner, per_token)


def _experts(model_type: str, config: Mapping[str, Any]) -> tuple[int, int]:
    if model_type not in ("mixtral", "qwen3_moe"):
        return 1, 0
    experts = config["num_experts"] if "num_experts" in config else config["num_local_experts"]
    return int(experts), int(config["num_experts_per_tok"])


def _phi3(model_type: str, config: Mapping[str, Any]) -> Architecture:
    """Phi-3: as Llama, with fused projections."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    intermediate = int(config["intermediate_size"])
    linears = [
        Linear("qkv_proj", hidden, (heads + 2 * kv_heads) * head_dim),
        Linear("o_proj", heads * head_dim, hidden),
        Linear("gate_up_proj", hidden, 2 * intermediate),
        Linear("down_proj", intermediate, hidden),
    ]
    return _architecture(
        model_type, config, (linears, 2 * hidden, hidden), (heads, kv_heads, head_dim), intermediate, 0
    )


def _gpt_neox(model_type: str, config: Mapping[str, Any]) -> Architecture:
    """GPT-NeoX and Pythia: fused attention, plain feed-forward, biases, LayerNorm."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    intermediate = int(config["intermediate_size"])
    bias = bool(config.get("attention_bias", True))
    linears = [
        Linear("query_key_value", hidden, 3 * hidden, bias=bias),
        Linear("dense", hidden, hidden, bias=bias),
        Linear("dense_h_to_4h", hidden, intermediate, bias=True),
        Linear("dense_4h_to_h", intermediate, hidden, bias=True),
    ]
    sizes = (linears, 4 * hidden, 2 * hidden)
    return _architecture(model_type, config, sizes, (heads, heads, hidden // heads), intermediate, 0)


def _gpt2(model_type: str, config: Mapping[str, Any]) -> Architecture:
    """GPT-2: fused attention, learned positions, biases, LayerNorm."""
    hidden, heads = int(config["n_embd"]), int(config["n_head"])
    intermediate = int(config.get("n_inner") or 4 * hidden)
    linears = [
        Linear("c_attn", hidden, 3 * hidden, bias=True),
        Linear("c_proj", hidden, hidden, bias=True),
        Linear("c_fc", hidden, intermediate, bias=True),
        Linear("c_proj", intermediate, hidden, bias=True),
    ]
    named = {**config, "num_hidden_layers": config["n_layer"], "hidden_size": hidden}
    named.setdefault("tie_word_embeddings", True)
    sizes = (linears, 4 * hidden, 2 * hidden + int(config["n_positions"]) * hidden)
    return _architecture(model_type, named, sizes, (heads, heads, hidden // heads), intermediate, 0)


def _phi(model_type: str, config: Mapping[str, Any]) -> Architecture:
    """Phi-1.5 and Phi-2: plain feed-forward, biases, one LayerNorm a layer."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim, intermediate = hidden // heads, int(config["intermediate_size"])
    linears = [
        Linear("q_proj", hidden, heads * head_dim, bias=True),
        Linear("k_proj", hidden, kv_heads * head_dim, bias=True),
        Linear("v_proj", hidden, kv_heads * head_dim, bias=True),
        Linear("dense", heads * head_dim, hidden, bias=True),
        Linear("fc1", hidden, intermediate, bias=True),
        Linear("fc2", intermediate, hidden, bias=True),
    ]
    sizes = (linears, 2 * hidden, 2 * hidden)
    found = _architecture(model_type, config, sizes, (heads, kv_heads, head_dim), intermediate, 0)
    return Architecture(**{**_fields(found), "head_bias": found.vocabulary})


def _fields(architecture: Architecture) -> dict[str, Any]:
    return {name: getattr(architecture, name) for name in Architecture.__slots__}


def _architecture(
    model_type: str,
    config: Mapping[str, Any],
    sizes: tuple[list[Linear], int, int],
    heads: tuple[int, int, int],
    intermediate: int,
    experts_per_token: int,
) -> Architecture:
    linears, norms, outer = sizes
    return Architecture(
        model_type=model_type,
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        intermediate=intermediate,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", model_type in _TIED)),
        linears=tuple(linears),
        norms=norms,
        outer=outer,
        experts_per_token=experts_per_token,
    )


_TIED = frozenset({"gemma", "gemma2", "gemma3_text", "gpt2"})
"""Architectures whose configurations leave out that head and embedding are one."""

_READERS = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "smollm3"),
        _llama,
    ),
    "phi3": _phi3,
    "phi": _phi,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
}
