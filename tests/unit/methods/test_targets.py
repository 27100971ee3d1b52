from __future__ import annotations

import pytest

from llamafarm.errors import ModelError
from llamafarm_methods.targets import in_layers, matching, resolve_targets

LLAMA = [f"model.layers.{i}.{leaf}" for i in (0, 1) for leaf in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")]
HEAD = "lm_head"


def test_all_layers_but_the_head():
    for word in ("auto", "all", "all-linear"):
        assert resolve_targets(word, [*LLAMA, HEAD], HEAD) == ["q_proj", "up_proj", "v_proj"]


def test_a_head_named_like_a_layer_is_told_apart():
    layers = ["layers.0.dense", "dense"]
    assert resolve_targets("auto", layers, "dense") == ["layers.0.dense"]


def test_names_are_kept_and_sorted():
    assert resolve_targets(("v_proj", "q_proj", "v_proj"), LLAMA, None) == ["q_proj", "v_proj"]
    assert resolve_targets(("self_attn.q_proj",), LLAMA, None) == ["self_attn.q_proj"]
    assert resolve_targets((HEAD,), [*LLAMA, HEAD], HEAD) == [HEAD]


def test_one_name_that_matches_nothing_is_an_error_though_others_match():
    with pytest.raises(ModelError, match=r"'q_prj': no layer.*did you mean 'q_proj'.*q_proj, up_proj, v_proj"):
        resolve_targets(("q_prj", "v_proj"), LLAMA, None)


def test_part_of_a_name_is_no_match():
    assert matching("proj", LLAMA) == []
    with pytest.raises(ModelError, match="LF-MODEL-020"):
        resolve_targets(("proj",), LLAMA, None)


def test_a_pattern_becomes_the_paths_it_matches():
    assert resolve_targets(r".*\.1\..*(q|v)_proj", LLAMA, None) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    with pytest.raises(ModelError, match="LF-MODEL-020"):
        resolve_targets(r".*\.key", LLAMA, None)


def test_layers_are_counted_by_the_first_number():
    assert in_layers("model.layers.1.experts.0.up_proj", {1}, None)
    assert not in_layers("model.layers.1.experts.0.up_proj", {0}, None)
    assert in_layers("transformer.h.3.attn.c_attn", {3}, "h")
    assert not in_layers("transformer.h.3.attn.c_attn", {3}, "layers")
    assert not in_layers("lm_head", {0}, None)
