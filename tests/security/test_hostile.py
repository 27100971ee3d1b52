"""The hostile corpus: artefacts of every kind that are only to be read, and try to do more.

Each is made here, tried by the command that would meet it, inside a cage (conftest.py): no canary file appears, nothing
is sent, nothing is written elsewhere, no traceback, and the exit code is the one that the error's kind has.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


class Bomb:
    """A pickle that writes the canary file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (os.environ["PWNED"], "w"))


CODE = (
    "import os\nopen(os.environ['PWNED'], 'w').close()\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n"
)
RUNS = "open(__import__('os').environ['PWNED'], 'w')"


# --- strategies -----------------------------------------------------------------------------------------------------

STRATEGIES = {
    "python tag": ("name: !!python/object/apply:os.system ['touch $PWNED']", 2),
    "python name tag": ("name: !!python/name:os.system", 2),
    "local tag": ("name: !exec 'x'", 2),
    "path tag": ("name: !!python/object/apply:pathlib.Path ['/etc']", 2),
    "dotted target": ("_target_: os.system\ncommand: touch x", 2),
    "dotted component": ("components: {fine_tuner: {_component_: os.system, type: pytorch}}", 2),
    "module as type": ("components: {fine_tuner: {type: 'os:system'}}", (2, 5)),
    "resolver": ("name: '${oc.decode:1}'", 2),
    "python in a resolver": ("name: '${eval:1+1}'", 2),
    "alias bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)),
        2,
    ),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, 2),
    "large": ("a: " + "x" * 2_000_000, 2),
    "not UTF-8": (b"name: \xff\xfe", 2),
    "NUL": ('name: "a\\0b"\noutput_dir: "a\\0b"', 2),
    "two documents": ("name: a\n---\nname: b", 2),
    "missing plugin": ("plugins: [llamafarm-evil]\n", (2, 5)),
    "plugin by address": ("plugins: ['evil @ https://example.com/evil.whl']\n", (2, 5)),
    "fragment outside": ("defaults: {training: ../../elsewhere/secret}\n", 2),
    "fragment by path": ("defaults: {training: /etc/passwd}\n", 2),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_as_texts(cage, name: str) -> None:
    content, expected = STRATEGIES[name]
    cage.write("strategy.yaml", content)
    code = cage.run("train", "--strategy", "strategy.yaml")
    assert code in (expected if isinstance(expected, tuple) else (expected,)), cage.shown
    assert "CANARY" not in cage.shown


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "trusts remote code": (
        {"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": True}},
        "SECURITY-002",
    ),
    "trusts by word": ({"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": "yes"}}, "SECURITY-002"),
    "trust unset": ({"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": None}}, "LF-STRATEGY"),
    "uploads": ({"training": {"push_to_hub": True, "hub_model_id": "a/b", "max_steps": 1}}, "SECURITY-010"),
    "writes keys": ({"output_dir": "../home/.ssh"}, "SECURITY-007"),
    "writes hooks": ({"output_dir": ".git/hooks"}, "SECURITY-007"),
    "writes the system": ({"output_dir": "/etc/llamafarm"}, "SECURITY-007"),
    "writes above home": ({"output_dir": ".."}, "SECURITY-007"),
    "caches into keys": (
        {"base_model": {"huggingface_id": "builtin:tiny", "cache_dir": "../home/.ssh"}},
        "SECURITY-007",
    ),
    "reads the environment": ({"dataset": "/proc/self/environ"}, "DATA-240"),
    "reads memory": ({"dataset": "/proc/self/mem"}, "DATA-240"),
    "reads a device": ({"dataset": "/dev/zero"}, "DATA-240"),
    "rows over http": ({"dataset": "https://example.com/rows.jsonl"}, "LF-"),
    "rows by file address": ({"dataset": "file:" + "///etc/hostname"}, "LF-DATA"),
    "a pickle as rows": ({"dataset": "rows.pkl"}, "DATA-046"),
    "model over http": ({"base_model": "https://example.com/model"}, "LF-MODEL"),
    "model up the tree": ({"base_model": "../../../../etc"}, "LF-MODEL"),
    "deepspeed file": ({"training": {"deepspeed": "/etc/passwd"}}, "LF-STRATEGY"),
    "huge batch": ({"training": {"batch_size": -1}}, "LF-STRATEGY"),
    "infinite rate": ({"training": {"learning_rate": float("inf")}}, "LF-STRATEGY"),
    "costly template": (
        {
            "base_model": {"from_scratch": {"architecture": {"model_type": "llama"}, "chat_template": "LOOP"}},
            "method": "full",
        },
        "SECURITY-009",
    ),
}
LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize("name", SETTINGS)
def test_strategies_that_ask_for_more(cage, strategy, name: str) -> None:
    config, shown = SETTINGS[name]
    (cage.work / "rows.pkl").write_bytes(pickle.dumps(Bomb()))
    text = json.dumps(config).replace("LOOP", LOOP)
    strategy(json.loads(text))
    code = cage.run("train", "--strategy", "strategy.yaml")
    assert shown in cage.shown
    assert code in (2, 3, 4, 7, 10, 11)
    assert not (cage.work / "out").exists()


def test_the_flag_alone_lets_code_run_and_an_upload_begin(cage, strategy) -> None:
    """The other side of the gate; without it the tests above would also pass if nothing worked at all."""
    strategy({"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": True}})
    for way in (("--set", "base_model.trust_remote_code=true"), ()):
        assert cage.run("train", "--strategy", "strategy.yaml", "--dry-run", *way) == 10
    assert cage.run("train", "--strategy", "strategy.yaml", "--dry-run", "--trust-remote-code") == 0
    strategy({"training": {"push_to_hub": True, "hub_model_id": "a/b"}})
    cage.run("train", "--strategy", "strategy.yaml", "--dry-run", "--push-to-hub")
    assert "LF-SECURITY" not in cage.shown
    strategy({"output_dir": "../home/.ssh"})
    assert cage.run("train", "--strategy", "strategy.yaml", "--dry-run", "--output", ".hidden") == 0


# --- datasets -------------------------------------------------------------------------------------------------------


def bomb(path: Path, size: int) -> None:
    with gzip.open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(b" " * (1 << 20))


DATASETS: dict[str, tuple[str, Callable[[Path], Any], int]] = {
    "gzip bomb": ("rows.jsonl.gz", lambda path: bomb(path, 80 << 20), 3),
    "damaged gzip": ("rows.jsonl.gz", lambda path: path.write_bytes(b"\x1f\x8b\x08junk"), 3),
    "pipe": ("rows.jsonl", os.mkfifo, 3),
    "link to a device": ("rows.jsonl", lambda path: path.symlink_to("/dev/zero"), 3),
    "link to the environment": ("rows.txt", lambda path: path.symlink_to("/proc/self/environ"), 3),
    "link to itself": ("rows.jsonl", lambda path: path.symlink_to(path), 3),
    "template in a row": (
        "rows.jsonl",
        lambda path: path.write_text('{"instruction": "{{ cycler.__init__.__globals__ }}", "output": "a"}\n'),
        0,
    ),
    "deep": ("rows.jsonl", lambda path: path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"), 3),
    "a huge number": ("rows.jsonl", lambda path: path.write_text('{"text": ' + "9" * 10_000 + "}\n"), 3),
    "parquet that is none": ("rows.parquet", lambda path: path.write_bytes(b"PAR1" + b"\0" * 64 + b"PAR1"), 3),
    "a pickle in disguise": ("rows.jsonl", lambda path: path.write_bytes(pickle.dumps(Bomb())), 3),
    "python": ("rows.py", lambda path: path.write_text(CODE), 3),
    "zip": ("rows.zip", lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 30), 3),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets(cage, strategy, name: str) -> None:
    file, make, expected = DATASETS[name]
    make(cage.work / file)
    if name != "template in a row":
        assert cage.run("inspect", "--model", "builtin:tiny", "--dataset", file) == expected, cage.shown
    else:
        assert cage.run("inspect", "--model", "builtin:tiny", "--dataset", file, "--set", "data_splitter=null") in (
            0,
            2,
        )
        assert "__globals__ }}" in cage.shown or "LF-" in cage.shown


# --- models and tokenizers ------------------------------------------------------------------------------------------


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def change(file: str, **values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(content | values), encoding="utf-8")

    return make


def remote_code(folder: Path) -> None:
    (folder / "evil.py").write_text(CODE)
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change("config.json", model_type="evil", auto_map=names)(folder)


def remote_tokenizer(folder: Path) -> None:
    (folder / "evil.py").write_text(CODE)
    names = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    change("tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=names)(folder)
    (folder / "tokenizer.json").unlink()


def shards(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "weights.safetensors")
        places = {f"layer.{number}": name for number, name in enumerate(names)}
        change("model.safetensors.index.json", metadata={}, weight_map=places)(folder)

    return make


def link(file: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(folder.parent.parent / target)

    return make


def weights(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content) and None


def template(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
        change("tokenizer_config.json", chat_template=text)(folder)

    return make


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights as a pickle": (only_pickle, "MODEL-170"),
    "code in the folder": (remote_code, "SECURITY-001"),
    "a tokenizer with code": (remote_tokenizer, "LF-"),
    "kernel of the hub": (change("config.json", _attn_implementation_internal="evil/kernel"), "SECURITY-003"),
    "kernel by the plain key": (change("config.json", _attn_implementation="evil/kernel:f"), "SECURITY-003"),
    "kernel for a part": (change("config.json", text_config={"attn_implementation": "evil/k"}), "SECURITY-003"),
    "experts of the hub": (change("config.json", experts_implementation="evil/k"), "SECURITY-003"),
    "trusts itself": (change("config.json", trust_remote_code=True), "SECURITY-003"),
    "trusts itself inside": (change("config.json", sub={"trust_remote_code": True}), "SECURITY-003"),
    "generation of its own": (change("generation_config.json", custom_generate="evil/gen"), "SECURITY-003"),
    "line feed in the type": (change("config.json", model_type=f"llama\n{RUNS}"), "MODEL-172"),
    "line feed inside": (change("config.json", text_config={"model_type": f"x\n{RUNS}"}), "MODEL-172"),
    "path as architecture": (change("config.json", architectures=["../../evil"]), "MODEL-172"),
    "a type that is a list": (change("config.json", model_type=["llama"]), "MODEL-172"),
    "layers without end": (change("config.json", num_hidden_layers=10**9), "MODEL-172"),
    "a giant width": (change("config.json", hidden_size=10**12), "MODEL-172"),
    "negative layers": (change("config.json", num_hidden_layers=-5), "MODEL-172"),
    "config that is a list": (lambda folder: (folder / "config.json").write_text("[]") and None, "MODEL-172"),
    "config nested for ever": (
        lambda folder: (folder / "config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000) and None,
        "MODEL-172",
    ),
    "shards outside": (shards("../weights.safetensors"), "SECURITY-004"),
    "shards from the root": (shards("/etc/passwd"), "SECURITY-004"),
    "shards as pickles": (shards("model-00001.bin"), "SECURITY-004"),
    "a link to a key": (link("tokenizer.json", "home/.ssh/id_rsa"), "SECURITY-004"),
    "weights elsewhere": (link("model.safetensors", "elsewhere/secret.txt"), "SECURITY-004"),
    "weights named elsewhere": (change("config.json", transformers_weights="../weights.safetensors"), "LF-MODEL"),
    "other tokenizers": (change("tokenizer_config.json", fast_tokenizer_files=["../../x.json"]), "SECURITY-004"),
    "a giant header": (weights(struct.pack("<Q", 1 << 40) + b"{}"), "LF-MODEL"),
    "a header with holes": (weights(struct.pack("<Q", 2) + b"{}" + b"x" * 99), "LF-MODEL"),
    "no header": (weights(b""), "LF-MODEL"),
    "a template that loops": (template(LOOP), "SECURITY-009"),
    "a template that fills memory": (template("{{ 'x' * 10000000000 }}"), "SECURITY-009"),
    "a template that writes on": (template("{{ 'x' * 50000000 }}"), "SECURITY-009"),
    "a template that doubles": (
        template("{% set n = namespace(x='xxxxxxxx') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"),
        "SECURITY-009",
    ),
    "a template that escapes": (
        template("{{ cycler.__init__.__globals__.os.popen('touch $PWNED').read() }}"),
        "LF-MODEL-031",
    ),
    "a template that escapes by format": (
        template("{{ '{0.__class__.__mro__}'.format(messages) }}{{ ''.__class__.__subclasses__() }}"),
        "LF-MODEL-031",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(cage, model, name: str) -> None:
    make, shown = MODELS[name]
    folder = model()
    make(folder)
    code = cage.run("generate", "--model", str(folder), "--prompt", "hello", "--max-tokens", "2")
    assert code in (4, 10), cage.shown
    assert shown in cage.shown
    assert "CANARY" not in cage.shown


def test_a_template_that_is_costly_for_some_rows_only(cage, model) -> None:
    """Trying it finds nothing; the cap on the text does."""
    folder = model()
    grows = "{% if 'grow' in m['content'] %}{{ 'x' * 40000000 }}{% endif %}"
    text = "{% for m in messages %}{{ m['content'] }}" + grows + "{% endfor %}"
    template(text)(folder)
    assert cage.run("generate", "--model", str(folder), "--prompt", "grow", "--max-tokens", "2") in (4, 10)
    assert "LF-SECURITY-009" in cage.shown


def test_a_loop_for_some_rows_only_is_stopped() -> None:
    from llamafarm.models.templates import TooCostly, limited

    def spin() -> None:
        while True:
            pass

    with pytest.raises(TooCostly), limited(0.2):
        spin()


def test_models_of_the_hubs_cache_may_link_to_its_blobs(cage, tiny_model_dir) -> None:
    store = cage.work / "models--a--b"
    snapshot = store / "snapshots" / "0123"
    shutil.copytree(tiny_model_dir("llama"), store / "blobs")
    snapshot.mkdir(parents=True)
    for path in (store / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert cage.run("generate", "--model", str(snapshot), "--prompt", "hello", "--max-tokens", "2") == 0


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def good_adapter(tiny_model_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


def tensors(**extra: torch.Tensor) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(found | {name.replace("__", "."): tensor for name, tensor in extra.items()}, path)

    return make


def adapter(**values: Any) -> Callable[[Path], None]:
    return change("adapter_config.json", **values)


EVIL_BASE = {"base_model_class": "Model", "parent_library": "evil"}
ADAPTERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights as a pickle": (pickled, "MODEL-171"),
    "imports by auto_mapping": (adapter(auto_mapping=EVIL_BASE), "SECURITY-005"),
    "imports by megatron_core": (adapter(megatron_core="evil", megatron_config={"a": 1}), "SECURITY-005"),
    "trusts inside": (adapter(tokenizer_kwargs={"trust_remote_code": True}), "SECURITY-005"),
    "multiplies layers": (adapter(layer_replication=[[0, 2]] * 1000), "SECURITY-005"),
    "loads others": (adapter(peft_type="XLORA", adapters={"a": "/etc"}), "SECURITY-005"),
    "loads a file": (adapter(corda_config={"cache_file": "/etc/passwd"}), "SECURITY-005"),
    "base on the network": (adapter(base_model_name_or_path="evil/model"), "SECURITY-006"),
    "base by address": (adapter(base_model_name_or_path="https://example.com/x"), "LF-MODEL"),
    "base up the tree": (adapter(base_model_name_or_path="../../etc"), "LF-MODEL"),
    "base with a line feed": (adapter(base_model_name_or_path=f"x\n{RUNS}"), "MODEL-174"),
    "no base": (adapter(base_model_name_or_path=None), "MODEL-009"),
    "a rank of a million": (adapter(r=10**6), "MODEL-174"),
    "a rank that is no number": (adapter(r=float("nan")), "MODEL-174"),
    "a rank for one layer": (adapter(rank_pattern={"q_proj": 10**9}), "MODEL-174"),
    "another kind": (adapter(peft_type="EVIL"), "MODEL-174"),
    "a pattern that never ends": (adapter(target_modules="(([a-z_.0-9]+)+)+!"), "SECURITY-012"),
    "a pattern that is none": (adapter(target_modules="((("), "MODEL-174"),
    "targets that are objects": (adapter(target_modules=[{"a": 1}]), "MODEL-174"),
    "tensors for the head": (tensors(base_model__model__evil__weight=torch.zeros(2)), "MODEL-173"),
    "another rank than it says": (adapter(r=4), "LF-MODEL"),
    "config that is a text": (lambda folder: (folder / "adapter_config.json").write_text('"x"') and None, "MODEL-172"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(cage, good_adapter: Path, tiny_model_dir, monkeypatch, name: str) -> None:
    make, shown = ADAPTERS[name]
    monkeypatch.setattr("llamafarm.models.templates.limited.__wrapped__.__defaults__", (1.0,), raising=False)
    folder = cage.work / "adapter"
    shutil.copytree(good_adapter, folder)
    cage.write("evil.py", CODE)
    monkeypatch.syspath_prepend(str(cage.work))
    make(folder)
    code = cage.run("generate", "--model", str(folder), "--prompt", "hello", "--max-tokens", "2")
    assert code in (4, 10), cage.shown
    assert shown in cage.shown
    assert "evil" not in sys.modules


def test_a_good_adapter_answers(cage, good_adapter: Path) -> None:
    assert cage.run("generate", "--model", str(good_adapter), "--prompt", "hello", "--max-tokens", "2") == 0


# --- checkpoints and runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def good_run(tmp_path_factory) -> Path:
    from llamafarm.testing.running import run

    folder = tmp_path_factory.mktemp("run")
    rows = [{"instruction": f"Say {number}", "output": f"{number}"} for number in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training = {"max_steps": 2, "batch_size": 2, "save_steps": 1, "logging_steps": 1}
    config = {
        "base_model": "builtin:tiny",
        "dataset": str(folder / "rows.jsonl"),
        "method": "lora",
        "training": training,
    }
    run(folder, {"fine_tuner": {"type": "pytorch", "config": config}})
    return folder / "output"


def test_a_run_holds_no_pickle(good_run: Path) -> None:
    """Neither by name nor by content: no file begins as a pickle or is an archive that could hold one."""
    files = [path for path in good_run.rglob("*") if path.is_file()]
    assert any("checkpoint-" in str(path) for path in files)
    for path in files:
        head = path.read_bytes()[:4]
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}, path
        assert head[:1] != b"\x80", path
        assert head[:2] != b"PK", path


PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "custom_checkpoint_0.pkl", "scaler.pt")


def test_pickles_that_others_would_read_are_not(cage, good_run: Path) -> None:
    folder = cage.work / "out"
    shutil.copytree(good_run, folder)
    for place in (folder, *folder.glob("checkpoint-*")):
        for name in PICKLES:
            (place / name).write_bytes(pickle.dumps(Bomb()))
    for place in (folder, *folder.glob("checkpoint-[0-9]*")):
        cage.run("generate", "--model", str(place), "--prompt", "hello", "--max-tokens", "2")
    cage.run("train", "--resume", str(folder), "--set", "training.max_steps=3", "--allow-changes")


def edited(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: [path.write_text(text, encoding="utf-8") for path in folder.rglob(name)] and None


def sealed(name: str, **values: Any) -> Callable[[Path], None]:
    """A changed file of each checkpoint, in a manifest with the right digests."""

    def make(folder: Path) -> None:
        from llamafarm.models.checkpoint import read_manifest, write_manifest

        for path in folder.glob(f"checkpoint-[0-9]*/{name}"):
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
            known = read_manifest(path.parent)
            assert known
            write_manifest(path.parent, known.step, position=known.position, identity=known.identity)

    return make


RUNS_CORPUS: dict[str, Callable[[Path], None]] = {
    "manifest that is a list": edited("manifest.json", "[]"),
    "manifest nested for ever": edited("manifest.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "manifest that leads out": edited("manifest.json", json.dumps({"files": {"../../elsewhere/secret.txt": "0"}})),
    "methods that are code": edited(
        "llamafarm_methods.json", json.dumps({"version": 1, "methods": [{"type": "os.system", "config": {}}]})
    ),
    "methods that are none": edited("llamafarm_methods.json", "{}"),
    "strategy with a tag": edited("resolved.yaml", "name: !!python/object/apply:os.system [x]"),
    "checkpoints nested for ever": edited("llamafarm_checkpoint.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "a weight elsewhere": sealed("training_state.json", weights={"a": ["../../../elsewhere/secret.txt", "a"]}),
    "a training that was another": sealed("training_state.json", others={"report": 7, "best": "x"}),
    "state that is a number": edited("trainer_state.json", "7"),
}


@pytest.mark.parametrize("name", RUNS_CORPUS)
def test_runs(cage, good_run: Path, name: str) -> None:
    folder = cage.work / "out"
    shutil.copytree(good_run, folder)
    RUNS_CORPUS[name](folder)
    cage.run("generate", "--model", str(folder), "--prompt", "hello", "--max-tokens", "2")
    cage.run("train", "--resume", str(folder), "--set", "training.max_steps=3", "--allow-changes")
    assert "CANARY" not in cage.shown


def test_there_are_enough() -> None:
    corpora = (STRATEGIES, SETTINGS, DATASETS, MODELS, ADAPTERS, RUNS_CORPUS)
    assert sum(map(len, corpora)) >= 100


def test_known_holes_of_libraries(monkeypatch) -> None:
    from llamafarm.errors import SecurityError
    from llamafarm.models import safety

    safety.require_floors.cache_clear()
    monkeypatch.setattr(safety, "version", lambda name: "5.2.0" if name == "transformers" else "99")
    with pytest.raises(SecurityError, match=r"CVE-2026-4372.*LF-SECURITY-011"):
        safety.require_floors()
    safety.require_floors.cache_clear()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_time_that_ends_where_no_error_comes_out_ends_again() -> None:
    """Python drops what is raised while it frees an object; the time is over all the same."""
    from llamafarm.models.templates import TooCostly, limited

    class Slow:
        def __del__(self) -> None:
            end = time.process_time() + 0.3
            while time.process_time() < end:
                pass

    def take_time() -> None:
        end = time.process_time() + 10
        with limited(0.1):
            Slow()
            while time.process_time() < end:
                pass

    with pytest.raises(TooCostly):
        take_time()
