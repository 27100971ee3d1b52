from __future__ import annotations

import json

import pytest

GOOD = """\
name: good
components:
  fine_tuner:
    type: pytorch
    config:
      base_model: builtin:tiny
      method: {type: lora, r: 8}
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return write


def test_a_good_strategy_says_what_it_is(cli, write):
    ended = cli("validate", write("good.yaml", GOOD))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "✓ good.yaml  strategy 'good': pytorch, lora, builtin:tiny\n"


def test_every_error_of_every_file_is_shown_at_its_place(cli, write):
    bad = write("bad.yaml", GOOD.replace("r: 8", "rank: 8") + "      training: {num_epochs: many}\n")
    worse = write("worse.yaml", GOOD.replace("type: pytorch", "type: pytroch"))
    ended = cli("validate", bad, write("good.yaml", GOOD), worse)
    assert ended.code == 2
    assert ended.out.startswith("✓ good.yaml")
    lines = ended.err.splitlines()
    assert lines[0].startswith("error: bad.yaml:7:28: unknown key 'rank'")
    assert lines[1:3] == ["    7 |       method: {type: lora, rank: 8}", "      |                            ^"]
    assert any(line.startswith("error: bad.yaml:8:30: training.num_epochs must be a number") for line in lines)
    assert any(line.startswith("error: worse.yaml:4:11: ") and "did you mean 'pytorch'?" in line for line in lines)
    assert lines[-1] == "3 errors"


@pytest.mark.parametrize(
    ("key", "home"),
    [
        ("seed", "training.seed"),
        ("lr", "training.lr"),
        ("torch_dtype", "base_model.torch_dtype"),
        ("max_samples", "dataset.max_samples"),
        ("lora_r", "method.lora_r"),
    ],
)
def test_a_key_in_the_wrong_block_is_told_where_it_belongs(cli, write, key, home):
    top = cli("validate", write("a.yaml", f"{GOOD}{key}: 1\n"))
    assert f"unknown key {key!r}; it belongs under components.fine_tuner.config: {home} [" in top.err
    inner = cli("validate", write("b.yaml", f"{GOOD}      {key}: 1\n"))
    assert f"unknown key {key!r} in components.fine_tuner.config; did you mean {home}? [" in inner.err
    outside = cli("validate", write("good.yaml", GOOD), "--set", f"{key}=1")
    assert home in outside.err


@pytest.mark.parametrize("key", ["max_steps", "save_steps", "eval_steps"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_a_number_of_steps_that_means_nothing_is_refused(cli, write, key, value):
    ended = cli("validate", write("good.yaml", GOOD), "--set", f"training.{key}={value}")
    assert ended.code == 2
    assert f"training.{key}: a number of steps, or -1, is expected, got {value} [LF-STRATEGY-029]" in ended.err
    assert cli("validate", "good.yaml", "--set", f"training.{key}=-1").code == 0


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("method:\n  type: lora\n  r: 16\n", "method"),
        ("training:\n  learning_rate: 2e-4\n", "training"),
        ("base_model:\n  huggingface_id: x\n", "base_model"),
        ("optimization:\n  cpu:\n    batch_size: 1\n", "optimization"),
    ],
)
def test_a_block_alone_is_a_fragment_and_the_output_says_so(cli, write, text, keys):
    ended = cli("validate", write("block.yaml", text))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"✓ block.yaml  fragment: {keys}\n"


def test_a_wrong_fragment_is_no_less_wrong(cli, write):
    ended = cli("validate", write("block.yaml", "training:\n  learning_rat: 1\n"))
    assert ended.code == 2
    assert "block.yaml:2:3" in ended.err
    assert "did you mean 'learning_rate'?" in ended.err


def test_each_strategy_of_a_file_is_checked(cli, write):
    both = (
        "strategies:\n- {name: a, fine_tuner: {type: pytorch}}\n- {name: b, fine_tuner: {type: pytorch, confg: {}}}\n"
    )
    ended = cli("validate", write("both.yaml", both))
    assert ended.code == 2
    assert ended.out.startswith("✓ both.yaml:a  strategy 'a'")
    assert "both.yaml:3:" in ended.err
    assert cli("validate", "both.yaml:a").code == 0


def test_an_override_is_checked_too(cli, write):
    ended = cli("validate", write("good.yaml", GOOD), "--set", "training.num_epochs=0")
    assert ended.code == 2
    assert "--set training.num_epochs" in ended.err


def test_json_holds_the_problems(cli, write):
    bad = write("bad.yaml", GOOD.replace("r: 8", "rank: 8"))
    ended = cli("validate", "--json", bad, write("good.yaml", GOOD))
    assert (ended.code, ended.err) == (2, "")
    first, second = json.loads(ended.out)
    assert first["valid"] is False
    assert first["problems"][0]["where"] == "bad.yaml:7:28"
    assert (second["valid"], second["problems"]) == (True, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.yaml", None, "gone.yaml"),
        ("empty.yaml", b"", "the file is empty"),
        ("not.yaml", b"a: [1,\n", "not.yaml:2:1: not YAML"),
        ("latin.yaml", "name: café".encode("latin-1"), "latin.yaml:1: not UTF-8"),
        ("folder.yaml", "folder", "folder.yaml"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(cli, tmp_path, name, content, message):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    ended = cli("validate", name)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("error:") == 1


def test_a_plugin_that_is_missing_is_exit_5(cli, write):
    ended = cli("validate", write("needs.yaml", "plugins: [farm-absent]\n" + GOOD))
    assert ended.code == 5
    assert "pip install" in ended.err


def test_among_errors_of_several_files_those_of_strategies_decide_the_exit_code(cli, write):
    needs = write("needs.yaml", "plugins: [farm-absent]\n" + GOOD)
    bad = write("bad.yaml", GOOD.replace("r: 8", "rank: 8"))
    ended = cli("validate", needs, bad)
    assert ended.code == 2
    assert "LF-PLUGIN-003" in ended.err
    assert "bad.yaml:7:28" in ended.err
