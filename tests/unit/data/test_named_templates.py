"""Chat templates by name: what they write, what is learned of it, and how they compare with those that TRL ships."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import BaseModelConfig, Example, MaskAuditConfig, Message, RowRef
from llamafarm.data.audit import Auditor
from llamafarm.data.tokens import IGNORED, tokenize
from llamafarm.errors import LlamaFarmError, ModelError
from llamafarm.models import trl_templates
from llamafarm.models._turns import end_of_turn
from llamafarm.models.named_templates import _TOKENS, named_template, names, problem_with
from llamafarm.models.special import extended

GOLDEN = json.loads(Path(__file__).with_name("golden_templates.json").read_text(encoding="utf-8"))
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
CHATML = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦yes.<|im_end|>⟧\n<|im_start|>user\nsure?<|im_end|>\n"
CHATML += "<|im_start|>assistant\n⟦as said<|im_end|>⟧"
GEMMA = "<start_of_turn>model\n⟦yes.<end_of_turn>⟧\n<start_of_turn>user\nsure?<end_of_turn>\n<start_of_turn>model\n"
GEMMA += "⟦as said<end_of_turn>⟧"
# What is learned stands between ⟦ and ⟧. Checked by hand against the model cards of the families.
WRITTEN = {
    "chatml": CHATML,
    "qwen": QWEN + CHATML,
    "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + CHATML,
    "phi": "<|user|>\nhi<|end|>\n<|assistant|>\n⟦yes.<|end|>⟧\n<|user|>\nsure?<|end|>\n<|assistant|>\n⟦as said<|end|>⟧",
    "phi4": "<|im_start|>user<|im_sep|>hi<|im_end|><|im_start|>assistant<|im_sep|>⟦yes.<|im_end|>⟧"
    "<|im_start|>user<|im_sep|>sure?<|im_end|><|im_start|>assistant<|im_sep|>⟦as said<|im_end|>⟧",
    "zephyr": "<|user|>\nhi</s>\n<|assistant|>\n⟦yes.</s>⟧\n<|user|>\nsure?</s>\n<|assistant|>\n⟦as said</s>⟧",
    "llama2": "<s>[INST] hi [/INST]⟦ yes. </s>⟧<s>[INST] sure? [/INST]⟦ as said </s>⟧",
    "mistral": "<s>[INST] hi[/INST]⟦ yes.</s>⟧[INST] sure?[/INST]⟦ as said</s>⟧",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    "\n\n⟦yes.<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\nsure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦as said<|eot_id|>⟧",
    "gemma": "<s><start_of_turn>user\nhi<end_of_turn>\n" + GEMMA,
    "gemma3": "<s><start_of_turn>user\nhi<end_of_turn>\n" + GEMMA,
}
WITH_SYSTEM = {
    "chatml": "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    "qwen": "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    "qwen2": "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    "phi": "<|system|>\nbrief<|end|>\n<|user|>\nhi<|end|>\n",
    "phi4": "<|im_start|>system<|im_sep|>brief<|im_end|><|im_start|>user<|im_sep|>hi<|im_end|>",
    "zephyr": "<|system|>\nbrief</s>\n<|user|>\nhi</s>\n",
    "llama2": "<s>[INST] <<SYS>>\nbrief\n<</SYS>>\n\nhi [/INST]",
    "mistral": "<s>[INST] brief\n\nhi[/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nbrief<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nhi<|eot_id|>",
    "gemma3": "<s><start_of_turn>user\nbrief\n\nhi<end_of_turn>\n",
}
TURNS = ("hi", "yes.", "sure?", "as said")
# Ours → TRL's copy of the template of a model of that family.
FAMILIES = {"gemma": "gemma", "gemma3": "gemma3", "llama3": "llama3", "phi": "phi3", "qwen": "qwen2_5"}
# TRL learns more of these: what closes an empty thought, which the template writes by itself; a second token behind the
# first that ends an answer; the end of an earlier answer, which a template writes otherwise than that of the last one.
MORE_BY_TRL = {
    "nemotron_3_5_lightning": "</think>",
    "nemotron_3_nano": "</think>",
    "nemotron_3_super": "</think>",
    "nemotron_3_ultra": "</think>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "gptoss": "<|end|>",
}
ASKED = "<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>"
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL (llamafarm[data])")


def rows(tokenizer: Any, *examples: Example) -> list[Any]:
    return list(tokenize(examples, tokenizer, stage="sft", max_seq_length=4096, train_on_inputs=False).rows)


def shown(tokenizer: Any, row: Any) -> str:
    """The decoded row, what is learned between signs."""
    text = ""
    for learned, group in groupby(zip(row.input_ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        piece = tokenizer.decode([token for token, _ in group], clean_up_tokenization_spaces=False)
        text += f"⟦{piece}⟧" if learned else piece
    return text


def parts(text: str) -> list[str]:
    """What is learned, each stretch by itself."""
    return re.findall("⟦(.*?)⟧", text, re.DOTALL)


@pytest.fixture(scope="module")
def with_template(lab: Any) -> Callable[..., Any]:
    def build(name: str, *tokens: str, base: Any = lab.byte_level, **options: Any) -> Any:
        tokenizer = base()
        tokenizer.add_tokens(["<|im_sep|>", *tokens])
        return extended(tokenizer, BaseModelConfig(huggingface_id="x", template=name, **options)).tokenizer

    return build


def test_every_template_of_ours_is_looked_at_here() -> None:
    assert set(WRITTEN) == set(GOLDEN) == set(_TOKENS)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_template_writes_and_what_is_learned(name: str, with_template: Any, lab: Any) -> None:
    tokenizer = with_template(name)
    (row,) = rows(tokenizer, lab.chat(*TURNS))
    assert shown(tokenizer, row) == WRITTEN[name]
    assert row.input_ids == GOLDEN[name]["ids"]
    assert row.labels == GOLDEN[name]["labels"]
    assert end_of_turn(tokenizer) == row.labels[-1]  # what generation stops at


@pytest.mark.parametrize("name", WRITTEN)
def test_the_prompt_to_answer_is_what_was_learned_from(name: str, with_template: Any, lab: Any) -> None:
    tokenizer = with_template(name)
    messages = [message.as_dict() for message in lab.chat(*TURNS).messages]
    prompt = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert prompt == WRITTEN[name].rpartition("⟦")[0].replace("⟦", "").replace("⟧", "")


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_a_system_turn(name: str, with_template: Any, lab: Any) -> None:
    tokenizer = with_template(name)
    (row,) = rows(tokenizer, lab.chat("hi", "yes.", system="brief"))
    assert shown(tokenizer, row).startswith(WITH_SYSTEM[name])
    assert shown(tokenizer, row).count("⟦") == 1


def test_gemma_refuses_a_system_turn(with_template: Any, lab: Any) -> None:
    with pytest.raises(ModelError, match=r"System role not supported.*template: gemma3.*LF-TEMPLATE-002"):
        rows(with_template("gemma"), lab.chat("hi", "yes.", system="brief"))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("base", ["byte_level", "metaspace"])
def test_the_audit_finds_nothing(name: str, base: str, with_template: Any, lab: Any) -> None:
    tokenizer = with_template(name, base=getattr(lab, base))
    auditor = Auditor(tokenizer, MaskAuditConfig())
    examples = [
        lab.chat("a", answer, "b", answer) for answer in ("the", "1 < 2?\nYes.", "user", "{{ x }}", "é🙂\u2028")
    ]
    for example, row in zip(examples, rows(tokenizer, *examples), strict=True):
        auditor.look(example, row.input_ids, row.labels)
    auditor.check(len(examples), 0)
    assert (auditor.found.answers, auditor.found.unstopped, auditor.found.foreign) == (10, 0, 0)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_template_does_not_write_is_refused(name: str, with_template: Any) -> None:
    """A tool's answer in a family without mark-up for it, a call, and tools: none is left out in silence."""
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = (Message("user", "a"), Message("assistant", "", tool_calls=(call,)), Message("tool", "b"))
    answer = Message("assistant", "c")
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}
    for messages, tools in ((turns, ()), ((*turns, answer), (tool,)), ((turns[0], answer), (tool,))):
        with pytest.raises(LlamaFarmError, match=r"LF-TEMPLATE-(002|003|010)"):
            rows(with_template(name), Example(RowRef("rows.jsonl", 1), messages, tools=tools))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("phi3", "phi"), ("Phi-3", "phi"), ("gemma2", "gemma"), ("LLAMA-3", "llama3"), ("tinyllama", "zephyr")],
)
def test_other_spellings(spelling: str, name: str) -> None:
    assert problem_with(spelling) is None
    assert named_template(spelling).name == name
    assert spelling not in names()


def test_an_unknown_name_lists_the_known_ones(with_template: Any) -> None:
    with pytest.raises(ModelError, match=r"no chat template is named 'lama3'.*LF-TEMPLATE-030") as error:
        with_template("lama3")
    (problem,) = error.value.problems
    assert problem.hint == "did you mean 'llama3'?"
    assert all(name in problem.message for name in WRITTEN)


@pytest.mark.parametrize(
    ("name", "missing"), [("phi4", "<|im_sep|>"), ("llama3", "<|eot_id|>"), ("chatml", "<|im_end|>")]
)
def test_a_tokenizer_without_the_mark_up_is_refused(name: str, missing: str, tiny_model_dir: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir("llama"))
    with pytest.raises(ModelError, match=r"LF-TEMPLATE-031") as error:
        extended(tokenizer, BaseModelConfig(huggingface_id="x", template=name))
    assert missing in str(error.value)
    assert ("add_chatml_tokens" in str(error.value)) == (name == "chatml")


def test_a_template_without_an_end_to_stop_at_is_refused(lab: Any) -> None:
    tokenizer = lab.byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"template zephyr: the text that ends an answer is no token.*LF-TEMPLATE-031"):
        extended(tokenizer, BaseModelConfig(huggingface_id="x", template="zephyr"))


def test_two_names_for_one_template() -> None:
    both = BaseModelConfig(huggingface_id="x", template="chatml", add_chatml_prompt_template=True)
    assert both.template_name == BaseModelConfig(huggingface_id="x", add_chatml_prompt_template=True).template_name
    with pytest.raises(ValueError, match="phi and add_chatml_prompt_template: true exclude each other"):
        BaseModelConfig(huggingface_id="x", template="phi", add_chatml_prompt_template=True)


def test_it_is_saved_with_the_tokenizer(with_template: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    with_template("phi").save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == named_template("phi").source


def test_marks_that_leave_out_an_end_in_letters(lab: Any) -> None:
    """What follows the marks is compared with what follows the turn alone, from the same place on."""
    template = (
        "{% for m in messages %}{{ '<|START|>' + m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|STOP|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|STOP|>' }}{% endif %}{% endfor %}"
    )
    (row,) = rows(tokenizer := lab.byte_level(template), lab.chat("a", "b", "c", "d"))
    assert shown(tokenizer, row).count("⟦b<|STOP|>⟧") == 1


def test_without_trl_there_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_templates, "find_spec", lambda _: None)
    trl_templates.shipped.cache_clear()
    try:
        assert names() == sorted(_TOKENS)
        problem = problem_with("qwen3")
        assert problem is not None
        assert "TRL, of pip install 'llamafarm[data]', has more" in problem.message
    finally:
        trl_templates.shipped.cache_clear()


@needs_trl
@pytest.mark.parametrize("name", FAMILIES)
def test_ours_write_what_the_families_templates_write(name: str, with_template: Any, lab: Any) -> None:
    ours = with_template(name)
    theirs = with_template(name)
    theirs.chat_template = trl_templates.shipped()[FAMILIES[name]].source
    systems = (None,) if name == "gemma" else (None, "brief")
    for example in [
        lab.chat(*turns, system=system) for turns in (TURNS, TURNS[:2], (" a ", "b\n")) for system in systems
    ]:
        assert rows(ours, example) == rows(theirs, example)
        turns = [message.as_dict() for message in example.messages[:-1]]
        prompts = [one.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for one in (ours, theirs)]
        assert prompts[0] == prompts[1]


@needs_trl
@pytest.mark.parametrize("name", sorted(trl_templates.shipped()))
def test_the_marks_of_trl_and_the_differences_of_prefixes_agree(
    name: str, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the model's own template writes the same text: two independent ways to find the answers."""
    source = trl_templates.shipped()[name].source
    tokenizer = lab.byte_level(source)
    tokenizer.add_tokens(sorted({*re.findall(r"<\S+?>", source)} - {"<s>"}))
    examples = [lab.chat(*TURNS)]
    if "System role not supported" not in source:
        examples.append(lab.chat("hi", "yes.", system="brief"))
    by_trl = [parts(shown(tokenizer, row)) for row in rows(tokenizer, *examples)]
    monkeypatch.setattr("llamafarm.data.render.training_template", lambda _: None)
    by_prefixes = [parts(shown(tokenizer, row)) for row in rows(tokenizer, *examples)]
    more = MORE_BY_TRL.get(name, "")
    assert [len(answers) for answers in by_trl] == [2, 1][: len(examples)]
    assert by_prefixes == [[part.removeprefix(more).removesuffix(more) for part in answers] for answers in by_trl]


@needs_trl
def test_the_marks_of_trl_are_used_only_with_its_own_template(lab: Any) -> None:
    shipped = trl_templates.shipped()["qwen3"]
    assert trl_templates.training_template(shipped.source) == shipped.training
    assert trl_templates.training_template(shipped.source + " ") is None


@needs_trl
def test_of_a_prompt_that_trl_marks_nothing_is_learned(lab: Any) -> None:
    """TRL's template of DeepSeek marks the token of the assistant too, with which a model is prompted."""
    tokenizer = lab.byte_level(trl_templates.shipped()["deepseekv3"].source)
    tokenizer.add_tokens([ASKED, ASKED.replace("Assistant", "User"), ASKED.replace("Assistant", "end▁of▁sentence")])
    (row,) = rows(tokenizer, lab.chat(*TURNS))
    assert shown(tokenizer, row).count(f"{ASKED}⟦") == 2
