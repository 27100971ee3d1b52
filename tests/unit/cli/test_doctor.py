from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata

import pytest

from llamafarm.api import HardwareProfile, NoConfig
from llamafarm.cli.doctor import examine
from llamafarm.cli.probe import Trial, Verdict, judge
from llamafarm.core.distributions import Plugin
from llamafarm.core.registry import Registered, Registry
from llamafarm.models import kernels


def test_a_machine_with_everything_is_told_what_to_do_next(cli):
    ended = cli("doctor")
    assert (ended.code, ended.err) == (0, "")
    assert f"✓ torch            {metadata.version('torch')}" in ended.out
    assert "no token" in ended.out
    assert ended.out.splitlines()[-1].startswith("Nothing is missing; training uses ")


def test_the_token_is_never_shown(cli, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    for ended in (cli("doctor"), cli("doctor", "--json")):
        assert "canary" not in ended.out + ended.err
    assert "token found" in cli("doctor").out
    assert json.loads(cli("doctor", "--json").out)["hub_token"] is True


def test_what_is_missing_comes_with_one_command(cli, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    ended = cli("doctor")
    assert ended.code == 5
    assert "✗ peft             not installed" in ended.out
    assert "✗ torch            1.0, needed: torch>=" in ended.out
    command = ended.out.splitlines()[-1]
    assert " -m pip install 'peft>=" in command
    assert "'torch>=" in command
    assert json.loads(cli("doctor", "--json").out)["install"] == command.strip()


def test_an_optional_library_is_no_lack(cli, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    ended = cli("doctor")
    assert ended.code == 0
    assert "· bitsandbytes     not installed  (optional: pip install 'llamafarm[qlora]')" in ended.out


def test_a_profile_that_breaks_is_told_and_stops_nothing():
    class Broken(HardwareProfile[NoConfig]):
        name = "broken"

        def probe(self):
            raise RuntimeError("no driver")

    registry = Registry(components={"hardware": {"broken": Registered(Broken, Plugin("p", "farm-p", "1"))}})
    found = examine(registry)
    (device,) = found["devices"]
    assert found["versions"]["gpu"] is found["versions"]["bf16"] is None
    assert device == {"type": "broken", "available": False, "reason": "probe failed: no driver"}


def test_a_report_of_bad_numbers_has_its_versions(cli, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = json.loads(cli("doctor", "--json").out)
    versions = found["versions"]
    assert (versions["torch"], versions["peft"]) == (metadata.version("torch"), metadata.version("peft"))
    assert versions["transformers"] == metadata.version("transformers")
    assert {"cuda", "cudnn", "driver", "gpu", "bf16", "generation"} <= set(versions)
    if not next(one for one in found["devices"] if one["type"] == "cuda")["available"]:
        assert (versions["cuda"], versions["cudnn"], versions["gpu"]) == (None, None, None)
    assert found["environment"]["variables"]["CUDA_VISIBLE_DEVICES"] == ""
    assert set(found["kernels"]) == {"flash_attn", "triton", "liger_kernel", "c++"}


def test_kernels_and_what_needs_them_are_listed(cli, monkeypatch):
    monkeypatch.setattr(kernels, "installed", lambda module: "2.8.3" if module == "flash_attn" else None)
    monkeypatch.setattr(kernels, "cpp_compiler", lambda: None)
    out = cli("doctor").out
    assert "✓ flash_attn       2.8.3  (for attn_implementation: flash_attention_2)" in out
    assert "· triton           not installed  (for torch_compile on CUDA)" in out
    assert "· c++              not installed  (for torch_compile on CPUs)" in out


def test_compiled_kernels_are_listed_with_the_reason_where_there_are_none(cli, monkeypatch):
    from llamafarm_tuners.pytorch.fast import native

    monkeypatch.setattr(native, "library", lambda: native.Library(None, "", "built for x86-64-v4"))
    assert "· compiled kernels built for x86-64-v4" in cli("doctor").out
    monkeypatch.setattr(native, "library", lambda: native.load(native.FOLDER.parent))
    told = json.loads(cli("doctor", "--json").out)["parts"]
    message = "not built: no C compiler when LlamaFarm was installed"
    assert told == [{"name": "compiled kernels", "there": False, "told": message}]


def test_a_fine_tuner_that_cannot_tell_its_parts_stops_nothing():
    class Broken:
        name = "broken"

        @classmethod
        def installed(cls):
            raise RuntimeError("no folder")

    registry = Registry(components={"fine_tuner": {"broken": Registered(Broken, Plugin("p", "farm-p", "1"))}})
    (found,) = examine(registry)["parts"]
    assert found == {"name": "broken", "there": False, "told": "does not tell its parts: no folder"}


def test_the_compiler_is_that_of_the_environment(monkeypatch, tmp_path):
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert kernels.cpp_compiler() == str(compiler)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kernels.cpp_compiler() is None
    assert kernels.installed("flash_attn") in (None, "unknown")


def test_a_strategy_is_named_once(cli):
    ended = cli("doctor", "one.yaml", "--strategy", "other.yaml")
    assert (ended.code, "LF-USAGE-004" in ended.err) == (2, True)
    assert "no such strategy file: other.yaml" in cli("doctor", "--strategy", "other.yaml").err


def test_options_of_a_trial_need_a_strategy(cli):
    for options in (("--steps", "3"), ("--overfit",), ("--set", "training.bf16=true")):
        ended = cli("doctor", *options)
        assert ended.code == 2
        assert "no strategy is named to try" in ended.err


NORMAL, TRIAL = [2.0, 1.9, 1.7, 1.6, 1.5, 1.2], Trial("s", (), 6, overfit=False, norms=(0.1, 10.0))


@pytest.mark.parametrize(
    ("losses", "norms", "trial", "failures", "notes"),
    [
        (NORMAL, [1.0] * 6, TRIAL, [], []),
        (NORMAL, [30.0] * 6, TRIAL, [], ["the gradient's norm is 30 in the middle, outside 0.1 to 10"]),
        (NORMAL, [30.0, *[1.0] * 5], TRIAL, [], []),
        (NORMAL, [30.0] * 6, replace(TRIAL, norms=(0.1, 50.0)), [], []),
        (NORMAL[::-1], [1.0] * 6, TRIAL, [], ["the loss does not fall: 1.433, then 1.867"]),
        ([2.0, 0.0, 1.0], [1.0] * 3, TRIAL, ["the loss is exactly 0 at step 2: nothing is learned"], []),
        (
            NORMAL,
            [1.0, 0.0, *[1.0] * 4],
            TRIAL,
            ["the gradient is exactly 0 at step 2: nothing reaches the weights"],
            [],
        ),
        ([], [], TRIAL, ["not one step was taken"], []),
        ([2.0, *[0.01] * 5], [0.001] * 6, replace(TRIAL, overfit=True), [], []),
        (
            NORMAL,
            [1.0] * 6,
            replace(TRIAL, overfit=True),
            ["8 rows are not learned by heart in 6 steps: the loss is still 1.43, not below 0.1"],
            [],
        ),
    ],
)
def test_what_is_healthy(losses, norms, trial, failures, notes):
    verdict = Verdict(losses, norms)
    judge(verdict, trial)
    assert (verdict.failures, verdict.notes) == (failures, notes)


def rows(tmp_path, tiny_dataset, model, **training):
    path = tmp_path / "s.yaml"
    options = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1} | training
    tuner = {"config": {"base_model": str(model), "dataset": str(tiny_dataset), "training": options}}
    path.write_text(json.dumps({"fine_tuner": tuner, "data_splitter": "hash"}))
    return str(path)


@pytest.mark.e2e
def test_a_healthy_strategy_is_tried_and_nothing_is_left(cli, tmp_path, tiny_dataset, tiny_model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    strategy = rows(tmp_path, tiny_dataset, tiny_model_dir("llama"))
    before = set(tmp_path.rglob("*"))
    own = tmp_path / ".home"  # the user's own folder: digests of models, and how good estimates were
    ended = cli("doctor", strategy, "--steps", "6", "--json")
    assert ended.code == 0
    trial = json.loads(ended.out)["trial"]
    assert trial["ok"] is True
    assert len(trial["losses"]) == len(trial["grad_norms"]) == 6
    assert trial["failures"] == trial["remedies"] == []
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(own)} == before
    overfit = json.loads(cli("doctor", strategy, "--overfit", "--steps", "60", "--set", "method=full", "--json").out)[
        "trial"
    ]
    assert overfit["ok"] is True
    assert overfit["losses"][-1] < 0.1


@pytest.mark.e2e
def test_numbers_that_go_wrong_come_with_remedies(cli, tmp_path, tiny_dataset, tiny_model_dir):
    strategy = rows(tmp_path, tiny_dataset, tiny_model_dir("llama"), bf16=True, learning_rate=1e-9)
    ended = cli("doctor", strategy, "--overfit", "--steps", "3")
    assert ended.code == 6
    assert "✗                  8 rows are not learned by heart in 3 steps" in ended.out
    assert ended.out.endswith("Try, one after the other:\n  --steps 6\n  --set training.learning_rate=3e-09\n")
    ended = cli("doctor", strategy, "--set", "training.learning_rate=1e30", "--set", "method=full", "--json")
    assert ended.code == 6
    trial = json.loads(ended.out)["trial"]
    assert "LF-NUMERIC" in trial["failures"][0]
    assert trial["remedies"] == [
        "--set training.disable_flash_sdpa=true",
        "--set base_model.attn_implementation=eager",
        "--set training.bf16=false",
        "--set training.learning_rate=1e+29",
    ]


@pytest.mark.parametrize("key", ["python", "platform", "libraries", "devices", "plugins", "disk_free_bytes", "missing"])
def test_json_has_every_part(cli, key):
    assert key in json.loads(cli("doctor", "--json").out)
