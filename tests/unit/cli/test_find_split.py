from __future__ import annotations

import json
import re

from llamafarm.testing.fresh import fresh


def test_the_flags_can_be_pasted(cli, tmp_path):
    rows = [{"instruction": f"on {number}", "output": f"The light {number} is on."} for number in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = cli("find-split", "builtin:tiny")
    assert ended.code == 0
    assert "response prefix: '<|im_start|>assistant\\n'" in ended.out
    assert "'no leading whitespace' found the assistant response!" in ended.out
    assert "'leading whitespace' did not find the assistant response" in ended.out
    (flags,) = re.findall(r"^--prefix-ids [\d,]+ --suffix-ids [\d,]+$", ended.out, re.MULTILINE)
    look = ("inspect", "-m", "builtin:tiny", "-d", "data.jsonl", "--json")
    by_template = json.loads(cli(*look).out)
    for spelling in (flags, flags.replace("-ids", "_ids")):
        assert json.loads(cli(*look, *spelling.split()).out)["rows"] == by_template["rows"]
    half = flags.split()[:2]
    assert json.loads(cli(*look, *half).out)["rows"] == by_template["rows"]
    assert json.loads(cli("find-split", "builtin:tiny", "--json").out)["flags"] == flags


def test_bad_input(cli, tmp_path):
    ended = cli("find-split")
    assert (ended.code, ended.out) == (2, "")
    assert "usage: llamafarm find-split MODEL" in ended.err
    assert cli("find-split", "./nope").code == 4
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    ended = cli("train", "-m", "builtin:tiny", "-d", "data.jsonl", "--prefix-ids", "1,x", "--dry-run")
    assert ended.code == 2
    assert "Error parsing prefix_ids or suffix_ids: '1,x' is no list of token ids" in ended.err


def test_a_wrong_mask_is_refused(cli, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"instruction": "on", "output": "It is on."}\n')
    prefix = json.loads(cli("find-split", "builtin:tiny", "--json").out)["variants"][0]["prefix"]
    short = ",".join(map(str, prefix[:-1]))
    look = ("inspect", "-m", "builtin:tiny", "-d", "data.jsonl", "--prefix-ids", short)
    ended = cli(*look)
    assert (ended.code, "LF-DATA-091" in ended.err) == (3, True)


def test_it_imports_no_torch_of_its_own(tmp_path, monkeypatch):
    code = """
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
        main(["find-split", "builtin:tiny"])
    except SystemExit as ended:
        answer = [ended.code, out.getvalue()]
"""
    monkeypatch.chdir(tmp_path)
    ended, out = fresh(code, [])
    assert ended in (0, None)
    assert "--prefix-ids" in out
