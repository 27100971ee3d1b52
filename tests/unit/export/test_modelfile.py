from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from llamafarm.errors import ModelError
from llamafarm.export.conversations import conversations
from llamafarm.export.modelfile import Modelfile, applied, derive, read_modelfile, rendered, without_bos

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FIRST_ONLY = (
    "{% for message in messages %}{% if loop.first %}START {% endif %}{{ message['role'] + ': ' + message['content'] "
    "}}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def tokenizer(base_of):
    def make(template):
        made = AutoTokenizer.from_pretrained(base_of("llama"))
        made.chat_template = template
        return made

    return make


def test_a_simple_template_is_carried_exactly(tokenizer):
    made = tokenizer(CHATML)
    written, told = derive(made)
    assert written is not None
    assert "checked on chats" in told[0]
    for conversation in conversations():
        if not conversation.tools:
            assert rendered(written, conversation) == without_bos(made, applied(made, conversation))


@pytest.mark.parametrize("template", [LLAMA3, FIRST_ONLY])
def test_what_cannot_be_carried_exactly_is_not_carried(template, tokenizer):
    """Trimmed contents and a special first turn: close is not the same."""
    written, told = derive(tokenizer(template))
    assert written is None
    assert "no TEMPLATE" in told[0]


def test_without_a_template_there_is_none(tokenizer):
    assert derive(tokenizer(None))[0] is None


def test_what_is_written_is_read_back(tmp_path):
    file = Modelfile("./a.gguf", "{{ .System }}\n\nx", ["<|end|>", 'a "b"'], 4096, 0.5, "Be kind.\nAnd short.")
    (tmp_path / "Modelfile").write_text(file.text())
    found = read_modelfile(tmp_path / "Modelfile")
    assert (found.source, found.template, found.system) == (file.source, file.template, file.system)
    assert list(found.stops) == ["<|end|>", 'a "b"']
    assert "PARAMETER num_ctx 4096" in file.text()
    assert "PARAMETER temperature 0.5" in file.text()


@pytest.mark.parametrize("text", [None, "TEMPLATE x\n"])
def test_a_modelfile_that_is_none_is_refused(text, tmp_path):
    if text:
        (tmp_path / "Modelfile").write_text(text)
    with pytest.raises(ModelError) as caught:
        read_modelfile(tmp_path / "Modelfile")
    assert caught.value.problems[0].id == "LF-MODEL-118"


def test_an_old_template_is_understood_for_one_turn():
    one, system, turns = conversations()[:3]
    template = "{{ if .System }}S:{{ .System }}\n{{ end }}Q:{{ .Prompt }}\nA:"
    assert rendered(template, one) == f"Q:{one.messages[0]['content']}\nA:"
    assert rendered(template, system).startswith("S:You are a helpful")
    with pytest.raises(ModelError, match="single turn"):
        rendered(template, turns)


def test_the_fifty_are_fifty_and_always_the_same():
    found = conversations()
    assert len(found) == 50
    assert found == conversations()
    kinds = [item.kind for item in found]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ["single", "system", "turns", "tools", "tool answer"], 10
    )
