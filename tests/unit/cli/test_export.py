from __future__ import annotations

import json

import pytest


@pytest.fixture
def adapter(tmp_path):
    """Enough of an adapter to be found; nothing that could be loaded."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "builtin:tiny", "r": 4}))
    return folder


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "no model is named"),
        (["run", "--model", "run"], 2, "two models are named"),
        (["run", "--to", "gguff"], 2, "--to: there is no 'gguff'; did you mean 'gguf'? [LF-USAGE-020]"),
        (["run", "--dtype", "int4"], 2, "--dtype: there is no 'int4'"),
        (["run", "--to", "gguf", "--gguf-type", "q4"], 2, "--gguf-type: there is no 'q4'"),
        (["run", "--keep-adapter"], 2, "--keep-adapter has no effect with --to merged; leave it out, or use --to vllm"),
        (["run", "--to", "gguf", "--system", "x"], 2, "--system has no effect with --to gguf"),
        (["run", "--max-shard-size", "big"], 2, "--max-shard-size: 'big' is no size"),
        (["run", "--max-shard-size", "0"], 2, "'0' is no size"),
        (["./rnu"], 2, "no output folder is named"),
        (["./rnu", "-o", "out"], 4, "did you mean 'run'?"),
        (["run", "-o", "run"], 2, "run is the model itself; use --output"),
        (["run", "-o", "there.txt"], 2, "there.txt is a file"),
        (["run", "-o", "full"], 2, "full is not empty and holds no export of ours"),
        (["run", "--check", "nowhere"], 2, "there is no folder nowhere to check"),
    ],
)
def test_bad_input_is_said_before_anything_is_loaded(cli, tmp_path, adapter, argv, code, message):
    (tmp_path / "there.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    ended = cli("export", *argv)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert not (adapter / "export").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no model is named"),
        (["run"], "nothing to compare with is given"),
        (["run", "--url", "http://a", "--tokenizer", "b"], "--url and --tokenizer exclude each other"),
    ],
)
def test_verify_serve_needs_one_thing_to_compare_with(cli, argv, message):
    ended = cli("verify-serve", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_verify_serve_by_hand(cli, tmp_path):
    same = cli("verify-serve", "builtin:tiny", "--tokenizer", "builtin:tiny", "--json")
    assert same.code == 0
    told = json.loads(same.out)
    assert (told["compared"], told["different"]) == (50, 0)
    (tmp_path / "Modelfile").write_text('FROM x\nTEMPLATE """{{ range .Messages }}{{ .Content }}{{ end }}"""\n')
    other = cli("verify-serve", "builtin:tiny", "--modelfile", "Modelfile")
    assert other.code == 12
    assert "[LF-QUALITY-004]" in other.err
    assert "DIFFERENT" in other.out


def test_a_run_is_exported_checked_and_refused_when_it_was_changed(cli, tmp_path):
    """The whole way by commands: train with an export, export again, damage it, check."""
    from llamafarm.testing.rows import make_fields

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(24)))
    train = ["train", "--model", "builtin:tiny", "--dataset", "rows.jsonl", "--max-steps", "3", "-o", "out"]
    ended = cli(*train, "--set", "training.learning_rate=1e-3", "--export", "merged", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["exports"] == ["out/export/merged"]
    again = cli("finetune", "export", "--model", "out", "--export_dir", "elsewhere", "--export_size", "2", "--json")
    assert again.code == 0, again.err
    assert all(check["passed"] for check in json.loads(again.out)["checks"])
    assert (tmp_path / "elsewhere" / "export_report.json").is_file()
    text = cli("export", "out", "--check", "elsewhere")
    assert text.code == 0
    assert "elsewhere is what was trained" in text.out
    (tmp_path / "elsewhere" / "chat_template.jinja").unlink()
    damaged = cli("export", "out", "--check", "elsewhere")
    assert (damaged.code, damaged.out) == (12, "")
    assert "chat template: missing" in damaged.err
    assert "[LF-QUALITY-003]" in damaged.err
