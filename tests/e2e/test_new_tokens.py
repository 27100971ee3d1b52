"""New tokens: learned, saved, and back again exactly, whatever loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm.api import Example, Message, RowRef
from llamafarm.models._generate import Sampling, generate
from llamafarm.models._load import load_for_generation
from llamafarm.models.named_templates import named_template
from llamafarm.testing._tiny import ARCHITECTURES

IDS = torch.tensor([[354, 4, 30, 31, 355, 5, 60]])
CHATML = {"add_chatml_tokens": True, "add_chatml_prompt_template": True}


@pytest.fixture
def trained(fit, monkeypatch):
    """Train, and keep what the model in memory says to IDS."""
    from llamafarm_tuners.pytorch import _fit

    def run(*arguments, architecture="llama", **options):
        seen = {}

        def train(work, run_, continuation, original=_fit.train):
            course = original(work, run_, continuation)
            model = work.trained.model.eval()
            with torch.no_grad():
                seen["logits"] = model(IDS.remainder(model.get_input_embeddings().weight.shape[0])).logits
            return course

        monkeypatch.setattr(_fit, "train", train)
        base = {"huggingface_id": str(fit.models(architecture)), **options.pop("base", CHATML)}
        done = fit(*arguments, architecture=architecture, base=base, **options)
        return done, seen["logits"]

    return run


def again(folder: Path) -> torch.Tensor:
    model, _ = load_for_generation(str(folder))
    with torch.no_grad():
        return model(IDS.remainder(model.get_input_embeddings().weight.shape[0])).logits


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_with_new_tokens_comes_back_exactly(trained, architecture):
    done, logits = trained(
        architecture=architecture, options={"dropout": 0.0}, max_steps=4, save_strategy="steps", save_steps=4
    )
    assert logits.shape[-1] == 384
    assert torch.equal(again(done.folder), logits)
    assert torch.equal(again(done.folder / "checkpoint-4"), logits)
    messages = [notice["message"] for notice in done.events("notice")]
    assert any("new tokens are learned with the adapter by trainable_token_indices" in message for message in messages)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("architecture", "names"),
    [("llama", {"embed_tokens", "lm_head"}), ("gemma", {"embed_tokens"}), ("gpt_neox", {"embed_in", "lm_head"})],
)
def test_the_rows_of_new_tokens_are_learned_and_others_are_not(trained, architecture, names):
    done, _ = trained(architecture=architecture, options={"dropout": 0.0}, max_steps=4)
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {name: [354, 355] for name in names}
    rows = {
        name: rows for name, rows in load_file(done.folder / "adapter_model.safetensors").items() if "token" in name
    }
    saved = [value for value in rows.values() if value.shape == (2, 64)]
    assert len(saved) == len(names)
    mean = AutoModelForCausalLM.from_pretrained(done.model).get_input_embeddings().weight.mean(dim=0)
    assert all((value - mean).abs().max() > 1e-3 for value in saved)


def with_peft_alone(base: str, adapter: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(json.loads((adapter / "llamafarm_vocabulary.json").read_text())["rows"])
    return peft.PeftModel.from_pretrained(model, adapter)


@pytest.mark.e2e
def test_plain_peft_loads_it_on_a_base_with_as_many_rows(trained):
    done, logits = trained(options={"dropout": 0.0}, max_steps=4)
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    model = with_peft_alone(str(done.model), done.folder).eval()
    with torch.no_grad():
        found = model(IDS).logits
    assert torch.equal(found[..., : len(tokenizer)], logits[..., : len(tokenizer)])


@pytest.mark.e2e
def test_full_training_saves_a_whole_model_of_that_size(trained):
    done, logits = trained("full", max_steps=4)
    model = AutoModelForCausalLM.from_pretrained(done.folder).eval()
    assert model.config.vocab_size == 384
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, logits)
    assert torch.equal(again(done.folder), logits)
    assert (model.generation_config.eos_token_id, model.config.bos_token_id) == ([355, 1], 354)
    assert not (done.folder / "llamafarm_vocabulary.json").exists()


@pytest.mark.e2e
def test_a_pad_token_alone_is_not_learned_and_comes_back(trained, tiny_model_dir):
    """Qwen2's tiny tokenizer has one token for PAD and unknown text, so that PAD becomes one of its own."""
    done, logits = trained(architecture="qwen2", base={"add_pad_token": True}, options={"dropout": 0.0}, max_steps=4)
    assert json.loads((done.folder / "llamafarm_vocabulary.json").read_text())["new"] == {"<|pad|>": 354}
    assert json.loads((done.folder / "adapter_config.json").read_text())["trainable_token_indices"] is None
    assert torch.equal(again(done.folder), logits)
    messages = [notice["message"] for notice in done.events("notice")]
    assert any(message.startswith("Adding dedicated PAD token <|pad|>") for message in messages)


@pytest.mark.e2e
def test_the_best_checkpoint_brings_its_rows_back(trained):
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.5}
    done, logits = trained(options={"dropout": 0.0}, held_out=4, max_steps=8, **options)
    assert done.result.best_step != 8
    assert torch.equal(again(done.folder), logits)
    assert torch.equal(again(done.folder / "checkpoint-best"), logits)


@pytest.mark.e2e
def test_what_trains_whole_modules_needs_no_single_rows(trained):
    chosen = {"dropout": 0.0, "modules_to_save": ["embed_tokens", "lm_head"]}
    done, logits = trained(options=chosen, max_steps=4)
    assert json.loads((done.folder / "adapter_config.json").read_text())["trainable_token_indices"] is None
    assert torch.equal(again(done.folder), logits)


@pytest.mark.e2e
def test_an_adapted_head_keeps_its_adapter(trained):
    done, logits = trained(options={"dropout": 0.0, "target_modules": ["q_proj", "lm_head"]}, max_steps=4)
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"embed_tokens": [354, 355]}
    assert any("lm_head: its adapter learns" in notice["message"] for notice in done.events("notice"))
    assert torch.equal(again(done.folder), logits)


@pytest.mark.e2e
def test_a_quantized_base_grows_too(trained):
    pytest.importorskip("bitsandbytes")
    done, _ = trained("qlora", options={"dropout": 0.0}, max_steps=4)
    assert again(done.folder).shape[-1] == 384


@pytest.mark.e2e
def test_generation_stops_at_the_new_end_token(trained):
    rows = [
        Example(RowRef("rows.jsonl", n + 1), (Message("user", "Close the door."), Message("assistant", "Done.")))
        for n in range(8)
    ]
    done, _ = trained("full", rows=rows, max_steps=20, learning_rate=1e-2)
    model, tokenizer = load_for_generation(str(done.folder))
    asked = [[{"role": "user", "content": "Close the door."}]]
    assert generate(model, tokenizer, asked, Sampling(max_new_tokens=40)) == ["Done."]


@pytest.mark.e2e
def test_an_adapter_of_another_tool_gets_the_rows_it_brings(tiny_model_dir, tmp_path: Path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir("llama"))
    tokenizer.add_tokens(["<|one|>"])
    base.resize_token_embeddings(400)
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    adapted = peft.get_peft_model(base, lora).eval()
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(tmp_path), adapted(IDS).logits)


@pytest.mark.e2e
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_model_from_scratch_fits_its_own_tokenizer(fit, model_type):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    scratch = {"architecture": {"model_type": model_type, "num_key_value_heads": 2, **sizes}, "vocab_size": 320}
    done = fit("full", base={"from_scratch": scratch}, max_steps=2)
    model, tokenizer = load_for_generation(str(done.folder))
    assert len(tokenizer) == model.config.vocab_size
    assert AutoTokenizer.from_pretrained(done.folder).get_vocab() == tokenizer.get_vocab()


@pytest.mark.e2e
def test_which_token_is_pad_does_not_matter(fit, tmp_path: Path):
    """Rows of unequal length, padded by five different tokens, or by none that the tokenizer names: one course."""
    original = fit.models("llama")
    courses = []
    for number, pad in enumerate(("<|pad|>", "<|eos|>", "<|bos|>", "!", None)):
        folder = Path(shutil.copytree(original, tmp_path / f"base-{number}"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) | {"pad_token": pad}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        model = json.loads((folder / "config.json").read_text())
        model["pad_token_id"] = {"<|eos|>": 1, "<|bos|>": 0, "!": 6}.get(pad, 2)  # its row would not be trained
        (folder / "config.json").write_text(json.dumps(model))
        base = {"huggingface_id": str(folder), "add_pad_token": False}
        for method in ("lora", "full"):
            done = fit(method, base=base, held_out=4, max_steps=4, learning_rate=1e-3)
            courses.append((method, done.losses, done.result.metrics["eval_loss"]))
    assert all(course == courses[number % 2] for number, course in enumerate(courses))


@pytest.mark.e2e
def test_a_template_by_name_is_trained_with_saved_and_asked_with(trained):
    done, logits = trained(base={"template": "zephyr"}, max_steps=2)
    model, tokenizer = load_for_generation(str(done.folder))
    assert tokenizer.chat_template == named_template("zephyr").source
    assert torch.equal(again(done.folder), logits)
    plain = AutoTokenizer.from_pretrained(done.folder)
    turns = [{"role": "user", "content": "hi"}]
    text = plain.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == f"<|user|>\nhi{plain.eos_token}\n<|assistant|>\n"
    sampling = Sampling(max_new_tokens=3)
    asked = generate(model, tokenizer, [turns], sampling)
    assert asked == generate(model, plain, [turns], sampling)
