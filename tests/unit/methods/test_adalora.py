"""AdaLoRA in a training: the term in the loss, the rounds, and what is left at the end."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from method_steps import ROWS, apply, load, logits, put_back, saved_and_loaded, trained
from pydantic import ValidationError

from llamafarm.api import TrainingConfig
from llamafarm.errors import StrategyError
from llamafarm.models._adapter import without_idle_warnings
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.adalora import Adalora
from llamafarm_tuners.pytorch._methods import Methods

STEPS = 20  # what `apply` says


def build(**options):
    return Adalora(Adalora.Config(**{"init_r": 6, "target_r": 2, "tinit": 3, "tfinal": 5, **options}))


def take(model, method, run, steps, first=1):
    """Steps as the training takes them."""
    methods = Methods(model, [method], run)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    model.train()
    for step in range(first, first + steps):
        output = model(input_ids=ROWS)
        loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten())
        (loss + methods.penalty()).backward()
        optimizer.step()
        methods.stepped(step, STEPS, optimizer, list)
        optimizer.zero_grad()


def ranks(model):
    """Directions of each layer that do anything."""
    return [
        int((parameter != 0).sum()) for name, parameter in model.named_parameters() if name.endswith("lora_E.default")
    ]


@pytest.fixture
def base(tiny_model_dir):
    return tiny_model_dir("llama")


@pytest.fixture
def run(tmp_path):
    return RecordingRun(tmp_path)


def test_the_penalty_is_what_peft_adds_to_its_own_loss(base, tmp_path, run):
    adapted = apply(build(orth_reg_weight=0.3), load(base), tmp_path)
    methods = Methods(adapted, [build(orth_reg_weight=0.3)], run)
    term = methods.penalty()
    output = adapted(input_ids=ROWS, labels=ROWS)
    plain = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten())
    assert torch.allclose(term, output.loss - plain, rtol=1e-4)
    assert term > 0.1
    term.backward()
    learned = [parameter.grad for name, parameter in adapted.named_parameters() if "lora_A" in name]
    assert all(gradient is not None and gradient.any() for gradient in learned)
    without = apply(build(orth_reg_weight=0), load(base), tmp_path)
    assert Methods(without, [build(orth_reg_weight=0)], run).penalty() is None


def test_ranks_go_down_to_the_target_and_stay(base, tmp_path, run):
    method = build()
    adapted = apply(method, load(base), tmp_path)
    assert adapted.peft_config["default"].total_step == STEPS
    take(adapted, method, run, 3)
    assert sum(ranks(adapted)) == 6 * 14, "nothing is taken away in the first steps"
    take(adapted, method, run, 7, first=4)
    assert 2 * 14 < sum(ranks(adapted)) < 6 * 14
    assert adapted.peft_config["default"].rank_pattern is None
    take(adapted, method, run, 5, first=11)
    left = ranks(adapted)
    assert sum(left) == 2 * 14
    assert len(set(left)) > 1
    (notice,) = [event.fields["message"] for event in run.events if event.type == "notice"]
    assert notice == f"adalora: 28 ranks are left, {min(left)} to {max(left)} in each of 14 layers"
    take(adapted, method, run, 5, first=16)
    assert ranks(adapted) == left


def test_the_last_round_is_made_up_for_when_its_step_was_left_out(base, tmp_path, run):
    method = build()
    adapted = apply(method, load(base), tmp_path)
    take(adapted, method, run, 14)
    take(adapted, method, run, 1, first=16)
    assert sum(ranks(adapted)) == 2 * 14


@pytest.mark.parametrize("steps", [10, 20])
def test_what_is_saved_is_what_was_trained_before_and_after_the_last_round(steps, base, tmp_path, run):
    method = build(deltaT=4)  # in between, what was taken away grows again
    adapted = apply(method, load(base), tmp_path)
    take(adapted, method, run, steps)
    after, left = logits(adapted), ranks(adapted)
    loaded = saved_and_loaded(adapted, method, base, tmp_path / "saved")
    assert torch.allclose(logits(loaded), after, atol=1e-6)
    described = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    kept = described["rank_pattern"]
    assert kept is None if steps == 10 else sorted(map(sum, kept.values())) == sorted(left)
    with without_idle_warnings():
        elsewhere = peft.PeftModel.from_pretrained(load(base), tmp_path / "saved")
    assert torch.allclose(logits(elsewhere), after, atol=1e-6)
    assert torch.allclose(logits(loaded.merge_and_unload(safe_merge=True)), after, atol=1e-5)


@pytest.mark.parametrize(("saved", "now"), [(10, 20), (16, 20)])
def test_an_earlier_checkpoint_goes_back_into_the_model(saved, now, base, tmp_path, run):
    method = build()
    adapted = apply(method, load(base), tmp_path)
    take(adapted, method, run, saved)
    after = logits(adapted)
    saved_and_loaded(adapted, method, base, tmp_path / "saved")
    take(adapted, method, run, now - saved, first=saved + 1)
    assert not torch.allclose(logits(adapted), after, atol=1e-4)
    put_back(adapted, method, tmp_path / "saved")
    assert torch.allclose(logits(adapted), after, atol=1e-6)
    again = saved_and_loaded(adapted, method, base, tmp_path / "again")
    assert torch.allclose(logits(again), after, atol=1e-6)


def test_a_resumed_run_knows_what_was_important(base, tmp_path, run):
    method = build()
    adapted = apply(method, load(base), tmp_path)
    take(adapted, method, run, 6)
    kept = Methods(adapted, [method], run).state_dict()
    again = method.apply(load(base), run)
    Methods(again, [method], run).load_state_dict(kept)
    first, second = (model.base_model.rankallocator for model in (adapted, again))
    assert again.peft_config["default"].total_step == STEPS
    for table in ("exp_avg_ipt", "exp_avg_unc"):
        ours, theirs = getattr(second, table), getattr(first, table)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("steps", "options"), [(8, {}), (1, {"tinit": 0, "tfinal": 0}), (6, {"tinit": 0})])
def test_a_training_that_is_too_short_is_refused(steps, options, base, run):
    method = build(**options)
    adapted = method.apply(load(base), run)
    with pytest.raises(StrategyError, match=rf"no steps to take ranks away in: {steps} steps.*LF-TRAIN-070"):
        Methods(adapted, [method], run).begin([], 0, TrainingConfig(), steps)


def test_there_have_to_be_ranks_to_take(base):
    with pytest.raises(ValidationError, match=r"target_r \(6\) has to be less than init_r \(6\)"):
        build(target_r=6)
