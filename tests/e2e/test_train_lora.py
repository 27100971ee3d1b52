from __future__ import annotations

import hashlib
import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from llamafarm.errors import HardwareError, ModelError, NumericError
from llamafarm.models._generate import Sampling, generate
from llamafarm.models._load import load_for_generation
from llamafarm.testing._tiny import ARCHITECTURES

IDS = torch.tensor([[0, 4, 30, 31, 1, 5, 60]])


def digest(model: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_falls(fit, architecture):
    losses = fit(architecture=architecture, learning_rate=2e-2, max_steps=15).losses
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.e2e
def test_the_base_is_bit_identical_after_training(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _fit

    seen = {}

    def train(work, run, continuation, original=_fit.train):
        seen["before"] = digest(work.trained.model)
        course = original(work, run, continuation)
        seen["after"] = digest(work.trained.model)
        return course

    monkeypatch.setattr(_fit, "train", train)
    done = fit()
    assert seen["before"] == seen["after"]
    adapter = load_file(done.folder / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)


@pytest.mark.e2e
def test_one_seed_one_course(fit):
    first, second, other, order = (
        fit(seed=seed, data_seed=data) for seed, data in ((1, None), (1, None), (2, None), (1, 5))
    )
    assert first.losses == second.losses
    assert first.losses != other.losses
    assert first.losses != order.losses
    assert (first.folder / "adapter_model.safetensors").read_bytes() == (
        second.folder / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.e2e
def test_measuring_the_base_first_changes_nothing(fit):
    plain = fit(held_out=4)
    measured = fit(held_out=4, evaluation={"exact_match": True, "max_new_tokens": 4})
    assert plain.losses == measured.losses


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_the_adapter_loads_with_peft_alone_and_gives_the_same_logits(fit, architecture, monkeypatch):
    from llamafarm_tuners.pytorch import _fit

    seen = {}

    def train(work, run, continuation, original=_fit.train):
        course = original(work, run, continuation)
        seen["logits"] = work.trained.model.eval()(IDS).logits.detach()
        return course

    monkeypatch.setattr(_fit, "train", train)
    done = fit(architecture=architecture)
    config = json.loads((done.folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    assert not torch.equal(base(IDS).logits, seen["logits"])
    loaded = peft.PeftModel.from_pretrained(base, done.folder)
    assert torch.equal(loaded(IDS).logits, seen["logits"])
    assert AutoTokenizer.from_pretrained(done.folder).chat_template
    ours, tokenizer = load_for_generation(str(done.folder))
    assert torch.equal(ours(IDS).logits, seen["logits"])
    for checkpoint in ("checkpoint-best",):
        again, _ = load_for_generation(str(done.folder / checkpoint))
        assert torch.equal(again(IDS).logits, seen["logits"])
    chat = [{"role": "user", "content": "Turn the light in the kitchen on."}]
    assert generate(ours, tokenizer, [chat], Sampling(5)) == generate(loaded, tokenizer, [chat], Sampling(5))


@pytest.mark.e2e
def test_the_step_is_the_same_however_it_is_cut_into_micro_steps(fit):
    courses = [
        fit(options={"dropout": 0}, batch_size=batch, gradient_accumulation_steps=accumulation)
        for batch, accumulation in ((4, 1), (2, 2), (1, 4))
    ]
    for other in courses[1:]:
        assert other.losses == pytest.approx(courses[0].losses, abs=1e-5)
        norms = [[event["grad_norm"] for event in course.events("log")] for course in (courses[0], other)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)  # Adam magnifies what rounding leaves


@pytest.mark.e2e
def test_the_last_partial_accumulation_steps_too(fit):
    done = fit(batch_size=1, gradient_accumulation_steps=4, max_steps=-1, num_epochs=1, rows=fit.rows[:10])
    assert done.result.metrics["train_steps"] == 3
    assert done.result.metrics["train_tokens"] == sum(
        int(event["message"].split("tokens ")[1].split(",")[0]) for event in done.events("notice")[:1]
    )


@pytest.mark.e2e
def test_learning_rates_follow_the_schedule(fit):
    done = fit(warmup_steps=2, lr_scheduler_type="linear", learning_rate=0.01, max_steps=6)
    rates = [event["learning_rate"] for event in done.events("log")]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025])
    constant = fit(lr_scheduler_type="constant", learning_rate=0.01, warmup_ratio=0.5, max_steps=3)
    assert [event["learning_rate"] for event in constant.events("log")] == [0.01] * 3


@pytest.mark.e2e
@pytest.mark.parametrize(
    "checkpointing", [{"gradient_checkpointing": True}, {"gradient_checkpointing": True, "bf16": True}]
)
def test_gradient_checkpointing_changes_no_figure(fit, checkpointing):
    plain = fit(bf16=checkpointing.get("bf16", False), options={"dropout": 0}, max_steps=4)
    assert fit(options={"dropout": 0}, max_steps=4, **checkpointing).losses == pytest.approx(plain.losses, abs=1e-4)


@pytest.mark.e2e
def test_bf16_autocast_is_real_and_trains(fit):
    exact, rounded = fit(max_steps=6), fit(max_steps=6, bf16=True)
    assert exact.losses != rounded.losses
    assert rounded.losses == pytest.approx(exact.losses, rel=2e-2)


@pytest.mark.e2e
def test_the_order_has_a_seed_of_its_own(fit):
    options = {"max_steps": 2, "warmup_ratio": 0.0}
    pairs = ((1, 1), (1, 2), (2, 1))
    first, reordered, other = (fit(seed=seed, data_seed=order, **options) for seed, order in pairs)
    # before the first step adapters change nothing: its loss tells the rows, and the next one's the weights too
    assert first.losses[0] == pytest.approx(other.losses[0], rel=1e-6)
    assert first.losses[1] != pytest.approx(other.losses[1], rel=1e-6)
    assert first.losses[0] != pytest.approx(reordered.losses[0], rel=1e-6)
    whole = [fit(seed=1, data_seed=order, max_steps=2, batch_size=24) for order in (1, 2)]
    assert whole[0].losses[0] == pytest.approx(whole[1].losses[0], rel=1e-6)


@pytest.mark.e2e
def test_a_curriculum_begins_with_the_easy_rows(fit):
    easy = fit(curriculum={"by": "tokens"}, max_steps=1).result.metrics["train_tokens"]
    whole = fit(curriculum={"by": "tokens"}, max_steps=6).result.metrics["train_tokens"]
    assert easy * 6 < whole


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_packs_teach_the_same_as_rows(fit, architecture):
    # all rows in each step, so that both take the same steps but for rounding, which grows from step to step
    options = {"architecture": architecture, "batch_size": 24, "max_steps": 4}
    plain = fit("lora", {"dropout": 0.0}, **options)
    packed = fit("lora", {"dropout": 0.0}, **options, packing=True, packing_length=100, max_seq_length=60)
    assert packed.losses == pytest.approx(plain.losses, rel=1e-4)
    assert any("packed 24 rows into" in notice["message"] for notice in packed.events("notice"))


@pytest.mark.e2e
def test_grouping_by_length_learns_the_same_rows(fit):
    grouped = fit(group_by_length=True, num_epochs=1, max_steps=-1)
    plain = fit(num_epochs=1, max_steps=-1)
    assert grouped.result.metrics["train_tokens"] == plain.result.metrics["train_tokens"]
    assert grouped.losses != plain.losses


@pytest.mark.e2e
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd", "adamw_8bit", "paged_adamw_8bit"])
def test_other_optimizers_train(fit, optim):
    if "8bit" in optim:
        pytest.importorskip("bitsandbytes")
    done = fit(optim=optim, learning_rate=1.0 if optim == "sgd" else 1e-2)
    assert done.losses[-1] < done.losses[0]


@pytest.mark.e2e
def test_a_poisoned_weight_stops_the_run_and_leaves_no_model(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _step

    def take(self, step, batches, original=_step.Stepper.take):
        if step == 4:
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(float("nan"))
        return original(self, step, batches)

    monkeypatch.setattr(_step.Stepper, "take", take)
    with pytest.raises(NumericError, match=r"step 4: the loss is nan.*LF-NUMERIC-001"):
        fit(save_strategy="steps", save_steps=1, held_out=2, eval_strategy="steps", eval_steps=1)
    folder = fit.root / "output-1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-best",
        "llamafarm",
        "trainer_log.jsonl",
    ]
    load_for_generation(str(folder / "checkpoint-3"))


@pytest.mark.e2e
def test_an_infinite_gradient_stops_the_run(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _step

    def losses(*arguments, original=_step.token_losses, **options):
        loss, right = original(*arguments, **options)
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss, right

    monkeypatch.setattr(_step, "token_losses", losses)
    with pytest.raises(NumericError, match="step 1: the gradient's norm is"):
        fit()


@pytest.mark.e2e
def test_out_of_memory_says_what_to_do(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _step

    monkeypatch.setattr(_step, "token_losses", lambda *_, **__: torch.empty(1 << 50))
    with pytest.raises(HardwareError, match=r"out of memory on a CPU.*; batch_size: 1 with.*LF-HARDWARE-010"):
        fit()


@pytest.mark.e2e
def test_other_failures_pass_as_they_are(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _step

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_step, "token_losses", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert [path.name for path in (fit.root / "output-1").iterdir()] == ["trainer_log.jsonl"]


@pytest.mark.e2e
def test_an_attention_kernel_that_does_not_fit_gives_way_unless_it_was_asked_for(fit, tiny_model_dir, tmp_path):
    folder = tmp_path / "gemma2"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir("llama"))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer), "pad_token_id": 2}
    Gemma2ForCausalLM(Gemma2Config(**sizes, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = {"huggingface_id": str(folder), "attn_implementation": "sdpa"}
    done = fit(base=base, max_steps=2)
    assert any("does not support sdpa attention" in event["message"] for event in done.events("notice"))
    fit.given["base_model.attn_implementation"] = "--set"
    with pytest.raises(ModelError, match="LF-MODEL-005"):
        fit(base=base, max_steps=2)
