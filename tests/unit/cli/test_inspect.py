from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafarm.testing.fresh import fresh

ROWS = [("on", "The light is on."), ("off\nnow", "Off it is.\nGood night."), ("x " * 60, "y " * 60 + "end")]
LOOK = ("inspect", "-m", "builtin:tiny", "-d", "data.jsonl")


@pytest.fixture(autouse=True)
def data(tmp_path):
    rows = [{"instruction": question, "output": answer} for question, answer in ROWS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_shows_what_is_trained(cli):
    ended = cli(*LOOK, "--row", "2")
    assert ended.code == 0
    shown, totals = ended.out.split("\n\n")
    assert shown.splitlines() == [
        "row 2  data.jsonl:2  template: chat template of builtin:tiny (with generation marks)",
        "<|begin_of_text|><|im_start|>user⏎",
        "off⏎",
        "now<|im_end|>⏎",
        "<|im_start|>assistant⏎",
        "⟦Off it is.⏎",
        "Good night.<|im_end|>⟧",
        shown.splitlines()[-1],
    ]
    assert shown.endswith(" · stop token '<|im_end|>' trained: yes")
    assert totals.startswith("all 3 rows to train on\ntokens p50 ")
    assert (
        "truncated at max_seq_length 2,048: 0 rows (0.0 %)\nwithout a trained token: 0 rows\nmask audit: 3 " in totals
    )


def test_trained_text_has_a_colour_too(cli, monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32m⟦The light is on.<|im_end|>⟧\x1b[0m" in cli(*LOOK, "-n", "1").out


def test_a_strategy_and_what_is_cut(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "fine_tuner: {type: pytorch, config: {base_model: 'builtin:tiny', dataset: data.jsonl,"
        " training: {max_seq_length: 40}}}\n"
    )
    ended = cli("inspect", "mine.yaml", "--row", "3")
    assert (ended.code, "LF-DATA-082" in ended.err) == (3, True)  # as training refuses it
    assert "40 tokens" in ended.out
    assert "cut from" in ended.out
    assert "stop token '<|im_end|>' trained: NO" in ended.out
    assert "40: 1 rows (33.3 %), of which 1 lose the end of their answer and 0 all of it" in ended.out
    assert "trained tokens that do not fit: 29 (" in ended.out
    assert "data.jsonl: over_long: truncate costs 29 trained tokens and 1 end tokens of 1 rows" in ended.out
    assert "(before rows are cut)" in ended.out
    ended = cli("inspect", "mine.yaml", "--row", "3", "--set", "dataset.max_token_loss=1")
    assert (ended.code, ended.err.count("LF-")) == (0, 0)


def test_a_row_that_is_cut_into_several(cli):
    turns = [{"role": role, "content": "one two three"} for role in ("user", "assistant")]
    Path("chat.jsonl").write_text(json.dumps({"messages": turns * 4}) + "\n")
    split = ("--set", "training.max_seq_length=40", "--set", "dataset.over_long=split")
    ended = cli("inspect", "-m", "builtin:tiny", "-d", "chat.jsonl", *split)
    assert ended.code == 0
    assert "40 tokens · " in ended.out
    assert " · the first of 3 rows, cut from " in ended.out
    assert "stop token '<|im_end|>' trained: yes" in ended.out


def test_json_holds_the_same(cli):
    ended = cli(*LOOK, "-n", "1", "--json")
    found = json.loads(ended.out)
    (row,) = found["rows"]
    assert [piece["trained"] for piece in row["pieces"]] == [False, True]
    assert row["pieces"][1]["text"] == "The light is on.<|im_end|>"
    assert (row["where"], row["stopped"], row["stop"]) == ("data.jsonl:1", True, "<|im_end|>")
    assert found["totals"]["examples"] == 3
    assert found["totals"]["longest"] > found["totals"]["p50"] > 0
    assert found["totals"]["problems"] == []


def test_what_training_would_refuse_ends_with_its_code(cli, tmp_path):
    limit = ("--set", "training.max_seq_length=1")
    ended = cli(*LOOK, *limit)
    assert (ended.code, "LF-DATA-092" in ended.err) == (3, True)
    assert "nothing to learn: dropped" in ended.out
    assert json.loads(cli(*LOOK, *limit, "--json").out)["totals"]["unlabelled"] == 3
    ended = cli(*LOOK, *limit, "--set", "dataset.mask_audit.enabled=false")
    assert (ended.code, "LF-DATA-092" in ended.err, "LF-DATA-023" in ended.err) == (3, False, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "nothing to inspect is named"),
        (("-m", "builtin:tiny"), "give a strategy, or --model and --dataset"),
        ((*LOOK[1:], "--row", "4"), "--row 4: the training set has 3 rows"),
    ],
)
def test_bad_input(cli, argv, message):
    ended = cli("inspect", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_other_encodings_get_ascii_signs():
    from llamafarm.cli.inspect import signs_for

    assert signs_for("ascii") == signs_for("latin-1") == ("[[", "]]", "\\n")
    assert signs_for("utf-8") == ("⟦", "⟧", "⏎")


NO_TORCH = """
import contextlib, importlib.util, io, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] == "torch" else real(name, *rest)
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from llamafarm.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
        main(arguments[0])
    except SystemExit as ended:
        code = ended.code
answer = [code, out.getvalue()]
"""


def test_it_works_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out = fresh(NO_TORCH, list(LOOK))
    assert code in (0, None), out
    assert "⟦" in out or "[[" in out


def test_what_a_method_puts_first_is_shown(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "fine_tuner: {type: pytorch, config: {base_model: 'builtin:tiny', dataset: data.jsonl,"
        " method: [{type: lora}, {type: bos-scaling, bos_token: '<|im_end|>'}]}}\n"
    )
    ended = cli("inspect", "mine.yaml", "--row", "1")
    assert ended.code == 0, ended.err
    assert "\n<|im_end|><|begin_of_text|><|im_start|>user⏎\n" in ended.out
    assert "⟦The light is on.<|im_end|>⟧" in ended.out
