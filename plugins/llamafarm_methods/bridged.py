"""The methods of PEFT that are offered: a table, each with what is true of it alone."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llamafarm.api import RunContext
from llamafarm_methods.adalora import Adalora
from llamafarm_methods.bridge import ROWS_ALONE, Bridge, PeftMethod
from llamafarm_methods.p_tuning import PTuning

if TYPE_CHECKING:
    from torch import nn

_ANY = frozenset({4, 8})


class Ia3(
    PeftMethod,
    bridge=Bridge("ia3", "IA3Config", {"feedforward_modules": ()}, {"init_ia3_weights": True}, bits=_ANY),
):
    """Scales what layers give out (https://arxiv.org/abs/2205.05638)."""


class Vera(
    PeftMethod,
    bridge=Bridge(
        "vera",
        "VeraConfig",
        {
            "r": 256,
            "vera_dropout": 0.0,
            "d_initial": 0.1,
            "projection_prng_key": 0,
            "save_projection": True,
        },
        {"init_weights": True},
    ),
):
    """Scales random projections that all layers share (https://arxiv.org/abs/2310.11454)."""


class Oft(
    PeftMethod,
    bridge=Bridge(
        "oft",
        "OFTConfig",
        {
            "r": 0,
            "oft_block_size": 32,
            "module_dropout": 0.0,
            "coft": False,
            "eps": 6e-5,
            "block_share": False,
        },
        {"init_weights": True, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5},
        bits=frozenset({4}),
    ),
):
    """Rotates weights in blocks (https://arxiv.org/abs/2306.07280)."""


class Loha(
    PeftMethod,
    bridge=Bridge(
        "loha",
        "LoHaConfig",
        {"r": 8, "alpha": 8.0, "rank_dropout": 0.0, "module_dropout": 0.0},
        {"init_weights": True, "use_effective_conv2d": False, "rank_pattern": {}, "alpha_pattern": {}},
    ),
):
    """Products of two low-rank matrices, element by element (https://arxiv.org/abs/2108.06098)."""


class Lokr(
    PeftMethod,
    bridge=Bridge(
        "lokr",
        "LoKrConfig",
        {
            "r": 8,
            "alpha": 8.0,
            "rank_dropout": 0.0,
            "module_dropout": 0.0,
            "decompose_both": False,
            "decompose_factor": -1,
        },
        {
            "init_weights": True,
            "use_effective_conv2d": False,
            "rank_dropout_scale": False,
            "rank_pattern": {},
            "alpha_pattern": {},
        },
    ),
):
    """Kronecker products (https://arxiv.org/abs/2309.14859)."""


class Hra(
    PeftMethod,
    bridge=Bridge("hra", "HRAConfig", {"r": 8, "apply_GS": False}, {"init_weights": True}),
):
    """Reflects weights (https://arxiv.org/abs/2405.17484)."""


class Fourierft(
    PeftMethod,
    bridge=Bridge(
        "fourierft",
        "FourierFTConfig",
        {"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777},
        {"init_weights": True, "n_frequency_pattern": {}},
    ),
):
    """A few coefficients of the update's spectrum (https://arxiv.org/abs/2405.03003)."""


class Miss(
    PeftMethod,
    bridge=Bridge("miss", "MissConfig", {"r": 64, "miss_dropout": 0.0, "mini_r": 1}, {"init_weights": True}),
):
    """One small matrix, repeated over the weight (https://arxiv.org/abs/2409.15371)."""


class Randlora(
    PeftMethod,
    bridge=Bridge(
        "randlora",
        "RandLoraConfig",
        {
            "r": 32,
            "randlora_alpha": 640.0,
            "randlora_dropout": 0.0,
            "projection_prng_key": 0,
            "save_projection": True,
        },
        {"init_weights": True, "sparse": False, "very_sparse": False},
        bits=frozenset({4}),
    ),
):
    """Sums of scaled random matrices, of full rank (https://arxiv.org/abs/2502.00987)."""


class Vblora(
    PeftMethod,
    bridge=Bridge(
        "vblora",
        "VBLoRAConfig",
        {"r": 4, "num_vectors": 256, "vector_length": 256, "topk": 2, "vblora_dropout": 0.0},
        {"save_only_topk_weights": False, "init_vector_bank_bound": 0.02, "init_logits_std": 0.1},
        identity=False,
    ),
):
    """Adapters made of vectors that all layers share (https://arxiv.org/abs/2405.15179)."""


class Road(
    PeftMethod,
    bridge=Bridge(
        "road", "RoadConfig", {"variant": "road_1", "group_size": 64}, {"init_weights": True}, bits=frozenset({4})
    ),
):
    """Rotates pairs of what layers give out (https://arxiv.org/abs/2409.00119)."""


class C3a(
    PeftMethod,
    bridge=Bridge(
        "c3a",
        "C3AConfig",
        {"block_size": 256},
        {"init_weights": True, "block_size_pattern": {}},
    ),
):
    """Circulant blocks (https://arxiv.org/abs/2407.19342)."""


class Delora(
    PeftMethod,
    bridge=Bridge(
        "delora",
        "DeloraConfig",
        {"r": 8, "delora_lambda": 15.0, "module_dropout": 0.0},
        {"init_weights": True, "rank_pattern": {}, "lambda_pattern": {}},
    ),
):
    """Low-rank updates whose size is learned apart from their direction (https://arxiv.org/abs/2503.18225)."""


class Hira(
    PeftMethod,
    bridge=Bridge(
        "hira",
        "HiraConfig",
        {"r": 32, "hira_dropout": 0.0},
        {"init_weights": True, "rank_pattern": {}},
        bits=frozenset({4}),
    ),
):
    """The weight times a low-rank matrix, element by element: an update of full rank."""


class LnTuning(
    PeftMethod,
    bridge=Bridge("ln-tuning", "LNTuningConfig", layers="norm", bits=_ANY),
):
    """Trains the normalizations (https://arxiv.org/abs/2312.11420)."""


def _one_of_both(config: Any) -> str:
    if bool(config.boft_block_size) == bool(config.boft_block_num):
        return "give boft_block_size or boft_block_num, and 0 for the other one"
    return ""


class Boft(
    PeftMethod,
    bridge=Bridge(
        "boft",
        "BOFTConfig",
        {"boft_block_size": 4, "boft_block_num": 0, "boft_n_butterfly_factor": 1, "boft_dropout": 0.0},
        {"init_weights": True, "bias": "none"},
        bits=_ANY,
        check=_one_of_both,
    ),
):
    """Rotates weights in blocks, several times, and scales what layers give out (https://arxiv.org/abs/2311.06243)."""

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add what is trained.

        Raises:
            ModelError: If a name matches nothing, or an option does not fit the model's sizes.
        """
        from llamafarm.models._adapter import blocks_without_compiling, share_permutations

        blocks_without_compiling()
        return share_permutations(super().apply(model, run))

    def restore(self, model: nn.Module, folder: Path) -> nn.Module:
        """Keep each permutation once."""
        from llamafarm.models._adapter import share_permutations

        return share_permutations(super().restore(model, folder))


class PromptTuning(
    PeftMethod,
    bridge=Bridge(
        "prompt-tuning",
        "PromptTuningConfig",
        {"num_virtual_tokens": 20, "prompt_tuning_init": "RANDOM"},
        layers="none",
        bits=_ANY,
        virtual_tokens=True,
        identity=False,
        refuses=ROWS_ALONE,
    ),
):
    """Learns vectors that stand before each row's tokens (https://arxiv.org/abs/2104.08691)."""

    training_defaults = MappingProxyType({"learning_rate": 3e-2})


class PrefixTuning(
    PeftMethod,
    bridge=Bridge(
        "prefix-tuning",
        "PrefixTuningConfig",
        {"num_virtual_tokens": 20},
        {"prefix_projection": False},
        layers="none",
        bits=_ANY,
        virtual_tokens=True,
        identity=False,
        refuses={
            **ROWS_ALONE,
            "training.gradient_checkpointing": "what it learns lies in the cache, which recomputed layers do not find",
        },
    ),
):
    """Learns keys and values that each layer's attention finds before each row's (https://arxiv.org/abs/2101.00190)."""

    training_defaults = MappingProxyType({"learning_rate": 3e-2})


BRIDGED: tuple[type[PeftMethod], ...] = (
    Ia3,
    Vera,
    Oft,
    Loha,
    Lokr,
    Hra,
    Fourierft,
    Miss,
    Randlora,
    Vblora,
    Road,
    C3a,
    Delora,
    Hira,
    LnTuning,
    PromptTuning,
    PrefixTuning,
    Adalora,
    Boft,
    PTuning,
)

REFUSED = (
    ("xlora", "it mixes adapters that are trained already, and this trains one; train each, and mix them with PEFT"),
    ("poly", "it asks for the task of each row and trains adapters for all of them at once; lora trains one"),
    ("multitask-prompt-tuning", "it asks for the task of each row; prompt-tuning learns one prompt"),
    ("bone", "PEFT has taken it out; miss came in its place"),
)
"""Methods that users ask for → why they are not offered, and what comes near."""
