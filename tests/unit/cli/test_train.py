from __future__ import annotations

import json

import pytest

from llamafarm.errors import ExitCode

STRATEGY = """\
name: mine
fine_tuner:
  type: pytorch
  config:
    base_model: model
    dataset: rows.jsonl
    method: {type: lora, r: 4}
    training: {num_epochs: 3}
"""


@pytest.fixture
def project(tmp_path):
    """A strategy, rows, and a folder that looks like a model."""
    (tmp_path / "mine.yaml").write_text(STRATEGY)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "other.jsonl").write_text('{"instruction": "c", "output": "d"}\n')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def plan(ended):
    assert (ended.code, ended.err) == (0, ""), ended.err
    return json.loads(ended.out)


def test_a_dry_run_shows_each_decision_with_its_reason_and_writes_nothing(cli, project):
    before = files(project)
    ended = cli("train", "--strategy", "mine.yaml", "--dry-run")
    assert ended.code == 0
    assert ended.out.splitlines()[0] == "mine: lora with pytorch on cpu, to output"
    assert ended.out.splitlines()[1].split() == ["SETTING", "VALUE", "WHY"]
    assert "device" in ended.out
    assert ended.err == "dry run: nothing was written\n"
    assert files(project) == before


def test_flags_win_over_the_file_and_set_over_flags(cli, project):
    flags = ["--epochs", "5", "--lr=1e-3", "--batch-size", "2", "--seed", "7", "-o", "there", "-d", "other.jsonl"]
    more = ["--max-steps", "9", "--eval-dataset", "rows.jsonl", "--job-name", "named", "--set", "training.seed=8"]
    found = plan(cli("train", "-s", "mine.yaml", "--dry-run", "--json", *flags, *more))
    assert found["name"] == "named"
    assert found["output_dir"] == "there"
    given = found["given"]
    assert given["training.num_epochs"] == "--epochs"
    assert given["training.learning_rate"] == "--lr"
    assert given["training.batch_size"] == "--batch-size"
    assert given["training.max_steps"] == "--max-steps"
    assert given["training.seed"] == "--set training.seed"
    assert given["dataset.path"] == "-d"
    assert given["dataset.eval_path"] == "--eval-dataset"
    assert given["method.0.r"] == "mine.yaml:7:29"


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("--num-epochs", "training.num_epochs"),
        ("--learning-rate", "training.learning_rate"),
        ("--train-dataset", "dataset.path"),
        ("--dataset", "dataset.path"),
        ("--base-model", "base_model.huggingface_id"),
        ("--model", "base_model.huggingface_id"),
        ("-m", "base_model.huggingface_id"),
        ("--output", "output_dir"),
        ("--output-dir", "output_dir"),
    ],
)
def test_each_spelling_of_a_flag_is_named_as_typed(cli, project, spelling, path):
    value = {"training": "2", "dataset": "rows.jsonl", "base_model": "model", "output_dir": "x"}[path.partition(".")[0]]
    assert plan(cli("train", "-s", "mine.yaml", "--dry-run", "--json", spelling, value))["given"][path] == spelling


@pytest.mark.parametrize("spelling", ["--strategy", "-s", "--strategy-file", "--config", "-c"])
def test_finetune_start_is_train(cli, project, spelling):
    train = cli("train", "--dry-run", "--json", spelling, "mine.yaml", "--epochs", "2")
    start = cli("finetune", "start", "--dry-run", "--json", spelling, "mine.yaml", "--epochs", "2")
    assert plan(train) == plan(start)


def test_a_model_and_a_dataset_make_a_strategy(cli, project):
    options = ["--model", "model", "--dataset", "rows.jsonl", "--dry-run", "--json"]
    found = plan(cli("finetune", "start", "--method", "lora", *options))
    assert (found["fine_tuner"], found["methods"]) == ("pytorch", ["lora"])
    assert plan(cli("finetune", "start", *options))["methods"] == ["lora"]
    assert plan(cli("finetune", "start", "--method", "full", *options))["methods"] == ["full"]


def test_naming_the_method_that_is_there_keeps_its_options(cli, project):
    found = plan(cli("train", "-s", "mine.yaml", "--method", "lora", "--dry-run", "--json"))
    assert found["given"]["method.0.r"] == "mine.yaml:7:29"


@pytest.mark.parametrize(
    "argv", [["train"], ["finetune", "start"], ["train", "--dataset", "rows.jsonl"], ["train", "-m", "model"]]
)
def test_without_a_strategy_there_is_a_list(cli, project, argv):
    ended = cli(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert f"llamafarm {' '.join(argv[:2] if argv[0] == 'finetune' else argv[:1])}: no strategy is named" in ended.err
    assert "demo3_training" in ended.err
    assert "LF-USAGE-006" in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-d", "row.jsonl"], ["row.jsonl: no such file; did you mean 'rows.jsonl'? [LF-DATA-001]"]),
        (["-d", "rwos"], ["no dataset 'rwos'; there is 'rows'", "did you mean 'rows'? [LF-DATA-200]"]),
        (["-d", "rows.zip"], ["rows.zip: .zip files cannot be read; unpack it [LF-DATA-046]"]),
        (["-d", "*.csv"], ["LF-DATA-001"]),
        (["-d", "rows.jsonl", "--set", "dataset.eval_path=no.jsonl"], ["no.jsonl: no such file"]),
        (["--set", "dataset={sources: [a.jsonl, rows.jsonl, b.jsonl]}"], ["a.jsonl: no such", "b.jsonl: no such"]),
        (["-d", "row.jsonl", "--model", "./modl"], ["row.jsonl: no such file", "no such model folder: ./modl"]),
    ],
)
def test_a_dry_run_says_which_data_is_not_there(cli, project, options, said):
    (project / "dataset_info.json").write_text('{"rows": {"file_name": "rows.jsonl"}}')
    (project / "rows.zip").write_bytes(b"PK")
    ended = cli("train", "-s", "mine.yaml", "--dry-run", *options)
    assert ended.code in (3, 4)
    assert all(part in ended.err for part in said), ended.err
    assert ended.err.count("no such file") <= sum("no such" in part for part in said) + 1


def test_a_dry_run_reads_no_row_and_asks_no_hub(cli, project):
    (project / "data_train.jsonl").write_text("no row")
    (project / "data_eval.jsonl").write_text("no row")
    for name in ("data.jsonl", "data_train.jsonl#5", "owner/name", "rows.jsonl"):
        ended = cli("train", "-s", "mine.yaml", "--dry-run", "-d", name)
        assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["-s", "demo3_trainin"], 2, "did you mean 'demo3_training'?"),
        (["-s", "mien.yaml"], 2, "did you mean 'mine.yaml'?"),
        (["-s", "mine.yaml", "--epochs", "0"], 2, "--epochs: training.num_epochs must be greater than 0"),
        (["-s", "mine.yaml", "--epochs", "2", "--num-epochs", "3"], 2, "--epochs 2 and --num-epochs 3 are one option"),
        (["-s", "mine.yaml", "--method", "lorra"], 2, "did you mean 'lora'?"),
        (["-s", "mine.yaml", "--set", "training.lerning_rate=1"], 2, "did you mean 'learning_rate'?"),
        (["-s", "mine.yaml", "--set", "oops"], 2, "has no '='"),
        (["-s", "mine.yaml", "--model", "./modl"], 4, "--model: no such model folder: ./modl"),
        (["-s", "mine.yaml", "--dataset", "row.jsonl"], 3, "did you mean 'rows.jsonl'?"),
        (["-s", "mine.yaml", "--output", "mine.yaml"], 9, "the output folder is a file"),
        (["-s", "mine.yaml", "--output", "model"], 9, "is not empty and holds no run of ours"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(cli, project, argv, code, message):
    before = files(project)
    ended = cli("train", *argv)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert files(project) == before


@pytest.mark.parametrize("flag", ["--model", "--dataset", "--eval-dataset", "--output", "-o"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_not_the_working_folder(cli, tiny_dataset, flag, value):
    given = {"--model": "builtin:tiny", "--dataset": str(tiny_dataset)} | {flag: value}
    ended = cli("train", *(part for pair in given.items() for part in pair), "--dry-run")
    assert ended.code == ExitCode.USAGE
    assert f"error: {flag}: " in ended.err
    assert "it is empty; was a variable not set? [LF-STRATEGY-029]" in ended.err
