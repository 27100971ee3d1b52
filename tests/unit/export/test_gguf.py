from __future__ import annotations

import sys

import pytest

pytest.importorskip("gguf")

from llamafarm.errors import ModelError, QualityError
from llamafarm.export import _gguf
from llamafarm.export._export import check, export
from llamafarm.export._gguf_vocabulary import splitting
from llamafarm.export.request import ExportRequest


def gguf(run, output, **options):
    return ExportRequest(str(run), "gguf", output, **options)


@pytest.mark.parametrize("base", ["llama", "llama-tied", "mistral", "qwen2", "qwen2-tied", "phi3"])
def test_float32_answers_as_the_adapter_does(base, trained, registry, tmp_path):
    report = export(gguf(trained(base), tmp_path / "out", gguf_type="f32"), registry)
    # measured: below 1e-6; the same logits but for the order of float32 sums
    assert report.figures["largest_difference"] < 1e-5
    assert all(item.passed for item in report.checks)
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.name.endswith(".f32.gguf")


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_rounded_types_hold_exactly_what_their_blocks_can(kind, trained, registry, tmp_path):
    report = export(gguf(trained(), tmp_path / "out", gguf_type=kind), registry)
    assert all(item.passed for item in report.checks)
    assert 0 < report.figures["relative_difference"] < 0.05  # measured: 0.0003 (f16), 0.003 (bf16), 0.008 (q8_0)
    again = check(gguf(trained(), tmp_path / "out"), registry, tmp_path / "out")
    assert again.dtype == kind


def test_rows_of_q_and_k_have_to_be_permuted(trained, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(_gguf, "_neighbours", lambda tensor, heads: tensor)
    with pytest.raises(QualityError, match="what is on disk and what was written"):
        export(gguf(trained(), tmp_path / "out"), registry)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_the_template_is_found(trained, registry, tmp_path, monkeypatch):
    from gguf import GGUFWriter

    monkeypatch.setattr(GGUFWriter, "add_chat_template", lambda self, text: None)
    with pytest.raises(QualityError, match="chat template: missing") as caught:
        export(gguf(trained(), tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-QUALITY-003"


def test_other_merges_are_found(trained, registry, tmp_path, monkeypatch):
    from gguf import GGUFWriter

    honest = GGUFWriter.add_token_merges
    monkeypatch.setattr(GGUFWriter, "add_token_merges", lambda self, merges: honest(self, merges[:5]))
    with pytest.raises(QualityError, match="other merges"):
        export(gguf(trained(), tmp_path / "out"), registry)


def test_an_architecture_that_is_not_written_here_names_the_converter(trained, registry, tmp_path):
    with pytest.raises(ModelError, match="GGUF of a gpt_neox model is not written here") as caught:
        export(gguf(trained("gpt_neox"), tmp_path / "out"), registry)
    problem = caught.value.problems[0]
    assert problem.id == "LF-MODEL-113"
    assert "convert_hf_to_gguf.py" in problem.hint
    assert not (tmp_path / "out").exists()


def test_positions_that_are_not_written_here_are_refused():
    from transformers import LlamaConfig

    config = LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ModelError, match="rope_type 'linear'"):
        _gguf._require_plain_positions(config)


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(ModelError) as caught:
        splitting(words)
    assert caught.value.problems[0].id == "LF-MODEL-114"


def test_without_the_library_the_message_says_what_to_install(trained, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(_gguf, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the library gguf.*llamafarm\[gguf\]") as caught:
        export(gguf(trained(), tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-MODEL-120"


CONVERTER = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from llamafarm.export import _gguf
folder, _, out, _, kind = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
_gguf._write(model, AutoTokenizer.from_pretrained(folder), Path(out), kind)
"""


def test_the_converter_of_llama_cpp_is_called_and_checked(trained, registry, tmp_path):
    """A script in its place that takes its arguments; the file that it writes is read back as any other."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    report = export(gguf(trained(), tmp_path / "out", llama_cpp=tmp_path / "llama.cpp"), registry)
    assert report.figures["relative_difference"] < 0.05
    assert all(item.passed for item in report.checks)


@pytest.mark.parametrize("text", [None, "import sys; sys.exit('Model FooForCausalLM is not supported')", ""])
def test_a_converter_that_fails_is_said_so(text, trained, registry, tmp_path):
    script = tmp_path / "convert_hf_to_gguf.py"
    if text is not None:
        script.write_text(text)
    with pytest.raises(ModelError) as caught:
        export(gguf(trained(), tmp_path / "out", llama_cpp=script), registry)
    assert caught.value.problems[0].id == "LF-MODEL-115"
    assert not (tmp_path / "out").exists()
    assert sys.executable  # the converter runs in this interpreter
