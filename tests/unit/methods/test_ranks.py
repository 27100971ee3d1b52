"""A rank that grows while it is trained: growing changes no answer, and costs the optimizer nothing that it knows."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_steps import ROWS, apply, load, logits, put_back, saved_and_loaded, trained
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError

from llamafarm.api import TrainingStart, TrainingStep
from llamafarm.errors import StrategyError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods._ranks import rank_of, resize
from llamafarm_methods.config import DoraConfig, LoraConfig, QloraConfig
from llamafarm_methods.dora import Dora
from llamafarm_methods.lora import Lora
from llamafarm_methods.ranks import rank_at

RANKS = (2, 4, 8)
METHODS = {
    "lora": lambda: Lora(LoraConfig(ranks=RANKS, dropout=0.0)),
    "alpha": lambda: Lora(LoraConfig(ranks=RANKS, alpha=3, dropout=0.0)),
    "gaussian": lambda: Lora(LoraConfig(ranks=RANKS, init_lora_weights="gaussian", dropout=0.0)),
    "more": lambda: Lora(
        LoraConfig(ranks=RANKS, modules_to_save=["lm_head"], trainable_token_indices=[1], dropout=0.0)
    ),
    "dora": lambda: Dora(DoraConfig(ranks=RANKS, dropout=0.0)),
    "magnitudes": lambda: Dora(DoraConfig(ranks=RANKS, magnitude_only_modules=["o_proj"], dropout=0.0)),
}
ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt_neox")
CASES = [("lora", name) for name in ARCHITECTURES] + [("dora", name) for name in ARCHITECTURES]
CASES += [(name, "llama") for name in ("alpha", "gaussian", "more", "magnitudes")]


@given(st.integers(1, 2000), st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True).map(sorted))
def test_every_rank_has_its_share_and_the_last_what_is_left_over(steps, ranks):
    if steps < len(ranks):
        return
    taken = [rank_at(step, steps, ranks) for step in range(1, steps + 1)]
    assert taken == sorted(taken)
    counts = [taken.count(rank) for rank in ranks]
    share = steps // len(ranks)
    assert counts == [*[share] * (len(ranks) - 1), steps - share * (len(ranks) - 1)]


def test_500_steps_as_documented():
    taken = [rank_at(step, 500, (4, 8, 16)) for step in range(1, 501)]
    assert [taken.count(rank) for rank in (4, 8, 16)] == [166, 166, 168]


def stepping(model, steps):
    """A model that was trained a little, its optimizer, and the step after it."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    model.train()
    for _ in range(steps):
        model(input_ids=ROWS, labels=ROWS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_growing_changes_no_answer_and_keeps_the_optimizer(method, architecture, tiny_model_dir, tmp_path):
    method, base = METHODS[method](), tiny_model_dir(architecture)
    model = apply(method, load(base), tmp_path)
    assert rank_of(model) == 2
    optimizer = stepping(model, 3)
    before, shapes = logits(model), {name: one.shape for name, one in trained(model).items()}
    assert (before - logits(load(base))).abs().max() > 1e-3, "something was learned"
    moments = {name: dict(optimizer.state[one]) for name, one in trained(model).items()}
    scales = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    saved, run = [], RecordingRun(tmp_path)
    # 9 steps: three for each rank
    method.stepped(model, TrainingStep(2, 9, optimizer, saved.append), run)
    assert rank_of(model) == 2
    assert saved == []
    method.stepped(model, TrainingStep(3, 9, optimizer, saved.append), run)
    assert rank_of(model) == 4
    assert saved == ["checkpoint_r2"]
    assert run.events[-1].fields["message"] == "Training with rank 4"
    # zeros are added, in products that may be summed in another order: float32, logits of size 1
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-6)
    assert {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)} == scales
    grown = 0
    for name, parameter in trained(model).items():
        state, was = optimizer.state[parameter], moments[name]
        assert state["step"] == was["step"] == 3, "the counters go on"
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key].shape == parameter.shape
            old = state[key][tuple(slice(size) for size in shapes[name])]
            assert torch.equal(old, was[key])
            assert state[key].count_nonzero() == was[key].count_nonzero(), "what was added has no history"
        grown += parameter.shape != shapes[name]
        if "lora_A" in name and parameter.shape != shapes[name]:
            assert parameter[2:].abs().min() > 0, "else nothing would ever be learned there"
    assert grown
    # and it goes on: the optimizer steps over the grown parameters, which move
    added = next(
        parameter for name, parameter in trained(model).items() if "lora_B" in name and parameter.shape[1] == 4
    )
    model.train()
    model(input_ids=ROWS, labels=ROWS).loss.backward()
    optimizer.step()
    assert added[:, 2:].abs().max() > 0
    again = saved_and_loaded(model, method, base, tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-6)
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"] / config["r"]) == (4, method.config.scale_numerator / 8)
    plain = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "saved"))
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-6, rtol=1e-6)


def test_the_same_seed_draws_the_same_rows_whatever_was_drawn_before(tiny_model_dir, tmp_path):
    method, found = METHODS["lora"](), []
    for noise in (0, 7):
        model = apply(method, load(tiny_model_dir("llama")), tmp_path)
        torch.rand(noise)
        before = torch.get_rng_state()
        resize(model, 4, seed=1)
        assert torch.equal(torch.get_rng_state(), before), "the run's own generator is left alone"
        found.append([parameter.clone() for parameter in trained(model).values()])
    assert all(map(torch.equal, *found))
    resize(model, 2)
    resize(model, 4, seed=2)
    assert not all(map(torch.equal, trained(model).values(), found[0]))


def test_a_step_that_was_left_out_does_not_lose_the_next_rank(tiny_model_dir, tmp_path):
    method = METHODS["lora"]()
    model = apply(method, load(tiny_model_dir("llama")), tmp_path)
    optimizer, saved = stepping(model, 1), []
    method.stepped(model, TrainingStep(4, 9, optimizer, saved.append), RecordingRun(tmp_path))  # 3 was left out
    assert (rank_of(model), saved) == (4, ["checkpoint_r2"])


def test_the_state_brings_a_model_to_its_rank_and_back(tiny_model_dir, tmp_path):
    method = METHODS["lora"]()
    model = apply(method, load(tiny_model_dir("llama")), tmp_path)
    small = saved_folder(model, method, tiny_model_dir("llama"), tmp_path / "small")
    method.load_state(model, {"rank": 8})
    assert (rank_of(model), method.state(model)) == (8, {"rank": 8})
    put_back(model, method, small)
    assert rank_of(model) == 2
    assert Lora(LoraConfig()).state(model) == {}, "nothing is kept where nothing grows"


def saved_folder(model, method, base, folder):
    saved_and_loaded(model, method, base, folder)
    return folder


def test_fewer_steps_than_ranks_are_refused(tiny_model_dir, tmp_path):
    method = METHODS["lora"]()
    run = RecordingRun(tmp_path)
    with pytest.raises(StrategyError, match="2 optimizer steps are fewer than 3 ranks") as caught:
        method.begin(None, TrainingStart(2, lambda size: iter(())), run)
    assert caught.value.problems[0].id == "LF-TRAIN-077"
    method.begin(None, TrainingStart(3, lambda size: iter(())), run)
    assert [event.fields["message"] for event in run.events] == ["Training with rank 2"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranks": [8, 4]}, "each is larger than the one before"),
        ({"ranks": [4, 4]}, "each is larger than the one before"),
        ({"ranks": [0, 4]}, "greater than or equal to 1"),
        ({"ranks": [4, 8], "r": 16}, "r 16 is not the last of ranks"),
        ({"ranks": [4, 8], "use_rslora": True}, "use_rslora has another scale"),
        ({"ranks": [4, 8], "rank_pattern": {"q_proj": 2}}, "leave out rank_pattern"),
        ({"ranks": [4, 8], "init_lora_weights": "pissa"}, "cannot be made once training has begun"),
        ({"ranks": [4, 8], "init_lora_weights": "orthogonal"}, "cannot be made once training has begun"),
        ({"ranks": [4, 8], "init_lora_weights": False}, "cannot be made once training has begun"),
    ],
)
def test_what_cannot_grow_is_refused(options, said):
    for config in (LoraConfig, QloraConfig):
        with pytest.raises(ValidationError, match=said):
            config(**options)


def test_r_is_the_last_rank_and_alpha_twice_it():
    config = LoraConfig(ranks=[4, 8, 16])
    assert (config.r, config.scale_numerator, config.first_rank) == (16, 32, 4)
    spec = Lora(config).adapter()
    assert spec.grows
    assert "training.torch_compile" in spec.refuses
    assert not Lora(LoraConfig()).adapter().grows
