"""The program as people run it: in a process of its own, from the documented commands to what they leave behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamafarm.cli import main

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "cli.py": [sys.executable, str(ROOT / "cli.py")],
    "module": [sys.executable, "-m", "llamafarm"],
    "script": [str(Path(sys.executable).with_name("llamafarm"))],
}


@dataclass(frozen=True)
class Folder:
    """A working folder with a model and rows, and the program."""

    path: Path
    model: Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFARM")}
        home = {"LLAMAFARM_HOME": str(self.path / ".home"), "XDG_STATE_HOME": str(self.path / ".state")}
        return kept | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | home | variables

    def run(self, *argv: str, program: str = "cli.py", stdin: str = "", **variables: str):
        return subprocess.run(
            [*PROGRAMS[program], *argv],
            cwd=self.path,
            env=self.environment(**variables),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def ok(self, *argv: str, **options: str):
        finished = self.run(*argv, **options)
        assert finished.returncode == 0, finished.stderr
        return finished


@pytest.fixture(scope="module")
def folder(tiny_model_dir, tmp_path_factory) -> Folder:
    from llamafarm.testing.rows import make_fields

    path = tmp_path_factory.mktemp("work")
    (path / "your_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(60)))
    return Folder(path, tiny_model_dir("llama"))


@pytest.fixture(scope="module")
def trained(folder: Folder):
    """The guide's first command, on a tiny model."""
    command = ["train", "--strategy", "demo3_training", "--dataset", "your_data.jsonl", "--epochs", "1"]
    small = ["--set", f"base_model={folder.model}", "--set", "training.logging_steps=1"]
    measured = ["--set", "evaluation.exact_match=true", "--set", "evaluation.max_new_tokens=8"]
    checkpoints = ["--set", "training.eval_strategy=epoch"]
    idle = ["--set", "training.early_stopping_patience=2", "--set", "training.eval_accumulation_steps=4"]
    return folder.ok(*command, *small, *measured, *checkpoints, *idle)


@pytest.mark.parametrize("program", PROGRAMS)
def test_three_ways_to_call_it_are_one_program(folder, program):
    shown = folder.ok("--help", program=program)
    assert shown.stdout == folder.ok("--help").stdout
    assert shown.stdout.startswith("Usage: llamafarm ")
    wrong = folder.run("trian", program=program)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: llamafarm: there is no command 'trian'; did you mean 'train'? [LF-USAGE-002]\n"


def test_training_says_what_it_does_on_stderr_and_what_came_of_it_on_stdout(folder, trained):
    assert re.fullmatch(
        r"✓ demo3_training-\d{8}-\d{6}: done in \S+\n"
        r"  loss         \S+ → \S+\n"
        r"  eval loss    \S+ \(best checkpoint: step 4\)\n"
        r"  exact match  \S+ % → \S+ % of \d+ held-out rows \(base → tuned\)\n"
        r"  memory       \S+ GiB at its peak \(estimated: \S+ GiB\)\n"
        r"  saved        output\n"
        r"  next         llamafarm generate --model output --prompt \"…\"\n"
        r"               tensorboard --logdir output/runs\n",
        trained.stdout,
    ), trained.stdout
    assert "Trainable params: 16,384\n" in trained.stderr
    line = re.compile(r"^ts=\S+ step=(\d)/4 epoch=\S+ loss=\S+ lr=\S+ grad_norm=\S+ tok_s=\S+ ", re.MULTILINE)
    steps = line.findall(trained.stderr)
    assert steps == ["1", "2", "3", "4"]
    lines = trained.stderr.splitlines()
    assert all(line.startswith(("ts=", "Trainable ", "All params: ")) for line in lines), lines
    idle = set(re.findall(r'event=notice message="training\.(\w+): no effect: ', trained.stderr))
    assert idle == {"early_stopping_patience", "eval_accumulation_steps"}


def test_what_training_leaves_is_where_the_documents_say(folder, trained):
    output = folder.path / "output"
    for name in (
        "adapter_model.safetensors",
        "trainer_log.jsonl",
        "checkpoint-best",
        "runs",
        "llamafarm/manifest.json",
    ):
        assert (output / name).exists(), name


def test_what_was_trained_answers(folder, trained):
    answered = folder.ok("generate", "--model", "./output/checkpoint-best", "--prompt", "Your test prompt")
    assert answered.stdout.endswith("\n")
    assert answered.stderr == ""


@pytest.fixture
def answer(folder, trained, monkeypatch, capsys):
    """Run `generate` on the trained model in this process, which has torch already; returns stdout."""
    monkeypatch.chdir(folder.path)

    def run(*argv: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(["generate", "--model", "output", "--max-tokens", "6", *argv])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        return captured.out

    return run


def test_each_way_to_give_the_prompt_gets_the_same_answer(answer):
    expected = answer("--prompt", "Your test prompt")
    assert answer("Your test prompt") == expected
    assert answer(stdin="Your test prompt\n") == expected
    assert answer("--prompt", "-", stdin="Your test prompt") == expected
    assert answer("--stream", "Your test prompt") == expected
    assert json.loads(answer("--json", "Your test prompt"))["answer"] == expected.removesuffix("\n")
    assert answer("--raw", "Your test prompt") != expected
    assert answer("--system", "Be brief.", "Your test prompt") != expected


def test_sampling_follows_its_seed_and_an_answer_can_be_saved(answer, folder):
    asked = ["Your test prompt", "--temperature", "1.5", "--max-new-tokens", "12", "--seed"]
    first = answer(*asked, "1", "--save", "answer.txt")
    assert answer(*asked, "1") == first
    assert answer(*asked, "2") != first
    assert (folder.path / "answer.txt").read_text() == first


def test_a_run_is_not_overwritten_unless_told(folder, trained):
    command = ["train", "-s", "demo3_training", "-d", "your_data.jsonl", "--model", str(folder.model)]
    before = (folder.path / "output" / "llamafarm" / "manifest.json").read_bytes()
    refused = folder.run(*command)
    assert (refused.returncode, refused.stdout) == (9, "")
    assert "add --overwrite" in refused.stderr
    assert (folder.path / "output" / "llamafarm" / "manifest.json").read_bytes() == before


def test_the_guides_second_command(folder):
    command = ["finetune", "start", "--model", str(folder.model), "--dataset", "your_data.jsonl", "--method", "lora"]
    finished = folder.ok(*command, "--max-steps", "2", "--output", "second", "--job-name", "second-job", "--json", "-q")
    found = json.loads(finished.stdout)
    assert finished.stderr == ""
    assert found["run_id"].startswith("second-job-")
    assert found["metrics"]["train_steps"] == 2
    assert (folder.path / "second" / "adapter_model.safetensors").is_file()


def test_the_guides_split(folder):
    paths = ["--input", "your_data.jsonl", "--train-output", "train.jsonl", "--eval-output", "eval.jsonl"]
    finished = folder.ok("datasplit", *paths, "--eval-percentage", "10")
    assert finished.stdout.startswith("Split created successfully!\n")
    rows = [(folder.path / name).read_text().splitlines() for name in ("train.jsonl", "eval.jsonl", "your_data.jsonl")]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2])
    assert rows[1]


def test_a_bad_row_is_exit_3_and_leaves_nothing(folder):
    (folder.path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    options = ["-s", "demo3_training", "-d", "bad.jsonl", "-m", str(folder.model), "-o", "never"]
    finished = folder.run("train", *options)
    assert (finished.returncode, finished.stdout) == (3, "")
    assert "error: bad.jsonl:2:" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (folder.path / "never").exists()


def test_an_interrupted_run_is_130_without_a_traceback(folder):
    options = ["-s", "demo3_training", "-d", "your_data.jsonl", "-m", str(folder.model), "-o", "stopped"]
    endless = ["--epochs", "100000", "--set", "training.logging_steps=1"]
    command = [*PROGRAMS["cli.py"], "train", *options, *endless]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder.path, env=folder.environment(), **pipes) as process:
        assert any("loss=" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("what was trained is kept\ngo on with: llamafarm train --resume stopped\n")
    assert "Traceback" not in err
    manifest = json.loads((folder.path / "stopped" / "llamafarm" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"


def test_a_reader_that_leaves_early_is_no_error(folder):
    command = [*PROGRAMS["cli.py"], "datagen", "smart-home", "--size", "20000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder.path, env=folder.environment(), **pipes) as many:
        assert json.loads(many.stdout.readline())
        many.stdout.close()
        assert (many.stderr.read(), many.wait(60)) == (b"", 0)
