"""Twenty secrets and twenty private sentences go into a run; no byte of what comes out holds one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SECRETS = {
    name: f"{form}CaNaRy{number:02d}xYzW1234567890abcdef"
    for number, (name, form) in enumerate(
        [
            ("HF_TOKEN", "hf_"),
            ("HUGGING_FACE_HUB_TOKEN", "hf_"),
            ("OPENAI_API_KEY", "sk-"),
            ("ANTHROPIC_API_KEY", "sk-ant-"),
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_SESSION_TOKEN", ""),
            ("GITHUB_TOKEN", "ghp_"),
            ("GITLAB_PRIVATE_TOKEN", "glpat-"),
            ("WANDB_API_KEY", ""),
            ("AZURE_CLIENT_SECRET", ""),
            ("DATABASE_PASSWORD", ""),
            ("PGPASSWORD", ""),
            ("NPM_TOKEN", "npm_"),
            ("SLACK_BOT_TOKEN", "xoxb-"),
            ("MY_SECRET", ""),
        ]
    )
}
IN_FILES = [f"hf_CaNaRyFiLe{number:02d}abcdefghijklmnop" for number in range(4)]
SENTENCES = [
    f"Patient CaNaRyName{number:02d} lives at {number} CaNaRyStreet and has the number CaNaRy-{number:04d}."
    for number in range(20)
]
MARK = "CaNaRy"


@pytest.fixture
def planted(cage, strategy, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (cage.home / ".netrc").write_text(f"machine huggingface.co login me password {IN_FILES[0]}", encoding="utf-8")
    (cage.work / ".env").write_text(f"HF_TOKEN={IN_FILES[1]}", encoding="utf-8")

    def write(**training: object) -> None:
        strategy(
            {
                "base_model": {"huggingface_id": "builtin:tiny", "token": IN_FILES[2]},
                "dataset": {"path": "private.jsonl"},
                "training": {
                    "max_steps": 2,
                    "batch_size": 2,
                    "save_steps": 1,
                    "logging_steps": 1,
                    "eval_strategy": "steps",
                    "eval_steps": 1,
                    "report_to": ["tensorboard"],
                    "hub_token": IN_FILES[3],
                }
                | training,
                "evaluation": {"exact_match": True, "max_samples": 4, "max_new_tokens": 4},
            },
            notes="Authorization: Bearer ${WANDB_API_KEY}",
        )
        rows = [{"instruction": text, "output": text[::-1] + text} for text in SENTENCES]
        cage.write("private.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    return write


def hits(cage) -> list[str]:
    """Files and lines that hold a canary.

    But for the files that the user wrote, and the answers beside their questions that evaluation.exact_match asks for,
    which are never uploaded.
    """
    given = {
        cage.work / "out" / "eval_results.json",
        cage.work / "private.jsonl",
        cage.work / "strategy.yaml",
        cage.work / ".env",
        cage.home / ".netrc",
    }
    found = [f"shown: {line}" for line in cage.shown.splitlines() if MARK in line]
    for path in cage.root.rglob("*"):
        if path.is_file() and path not in given and MARK.encode() in path.read_bytes():
            lines = [line[:300] for line in path.read_bytes().splitlines() if MARK.encode() in line]
            found.append(f"{path.relative_to(cage.root)}: {lines[0]!r}")
    return found


def test_a_run_tells_nothing(cage, planted) -> None:
    planted()
    code = cage.run("train", "--strategy", "strategy.yaml", "--set", "data_splitter=hash", "--verbose")
    assert code == 0, cage.shown
    out = cage.work / "out"
    assert list(out.rglob("events.out.tfevents*")), "the events of TensorBoard are looked at too"
    assert (out / "README.md").exists()
    assert (out / "llamafarm" / "run.log").exists() or (out / "llamafarm" / "events.jsonl").exists()
    assert hits(cage) == []


def test_answers_that_quote_rows_are_not_uploaded() -> None:
    from llamafarm_tuners.pytorch import hub

    assert "eval_results.json" in hub._PRIVATE


BAD = {
    "bad JSON": '{"instruction": "%s", "output": "x"} %s\n',
    "a number": '{"instruction": 5, "output": "%s %s"}\n',
    "an unknown form": '{"%s": "%s"}\n',
    "a bad label": '{"prompt": "%s", "completion": "a", "label": "%s"}\n',
    "cut off": '{"instruction": "%s %s',
}


@pytest.mark.parametrize("name", [name for name in BAD if name != "an unknown form"])
def test_errors_in_rows_tell_nothing(cage, planted, name: str) -> None:
    planted()
    cage.write("private.jsonl", BAD[name] % (SENTENCES[0], SENTENCES[1]) * 2)
    assert cage.run("train", "--strategy", "strategy.yaml") == 3
    assert hits(cage) == []


def test_a_crash_tells_nothing(cage, planted, monkeypatch) -> None:
    """The report of a defect that struck with rows and secrets in reach."""
    from llamafarm.cli.guard import run

    def broken(self, examples, *rest, **named):
        secret, row = SECRETS["WANDB_API_KEY"], SENTENCES[0]
        raise LookupError(f"no {secret} in {len(row)}")

    planted()
    monkeypatch.setattr("llamafarm_tuners.pytorch.tuner.PytorchTuner.fit", broken)
    cage.capture.readouterr()
    assert run(["--debug", "train", "--strategy", "strategy.yaml"]) == 1
    captured = cage.capture.readouterr()
    cage.shown = captured.out + captured.err
    assert list((cage.home / ".state").rglob("crash-*.txt"))
    assert hits(cage) == []


@pytest.mark.parametrize("command", ["explain", "validate", "doctor", "plugins list"])
def test_other_commands_tell_nothing(cage, planted, command: str) -> None:
    planted()
    wanted = ["strategy.yaml"] if command in ("explain", "validate") else []
    cage.run(*command.split(), *wanted)
    assert hits(cage) == []


def test_the_records_of_a_run_are_its_owners(cage, planted) -> None:
    planted(report_to=["none"], eval_strategy="no")
    assert cage.run("train", "--strategy", "strategy.yaml") == 0, cage.shown
    own: Path = cage.work / "out" / "llamafarm"
    assert own.stat().st_mode & 0o077 == 0
