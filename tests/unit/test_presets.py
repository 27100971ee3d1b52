"""Everything that ships validates, and says on top what it is for and how to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from llamafarm.api import FineTunerConfig
from llamafarm.core.fragments import check_fragment
from llamafarm.core.json_schema import json_schema
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import Registry, load_registry
from llamafarm.core.request import Request
from llamafarm.core.run import not_as_asked
from llamafarm.core.schema import SEVERAL_BLOCKS
from llamafarm.core.yaml_source import read_yaml

ROOT = Path(__file__).parents[2]
STRATEGIES = sorted((ROOT / "strategies").rglob("*.y*ml"))
FRAGMENTS = sorted((ROOT / "configs").rglob("*.y*ml"))
WHOLE = [ROOT / f"tests/documents/{name}.yaml" for name in ("model", "minimal-memory", "maximum-performance")]


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = load_registry(())
    own = {
        family: {name: found for name, found in components.items() if found.plugin.distribution == "llamafarm"}
        for family, components in registry.components.items()
    }
    return Registry(plugins=registry.plugins, components=own)


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_strategies(registry: Registry, path: Path):
    strategy = load(Request(str(path)), registry).strategy
    assert strategy.name == path.stem
    assert strategy.description
    comment = path.read_text(encoding="utf-8").split("name:")[0]
    assert f"Run:  llamafarm train --strategy {path.stem}" in comment


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maximum-performance", {"training.tf32: off", "training.use_flash_attention: off"}),
        ("minimal-memory", {"training.fp16: off", "training.optim: adamw_8bit"}),
        ("quickstart", set()),
    ],
)
def test_a_run_says_what_of_a_preset_the_machine_has_not(registry: Registry, tmp_path: Path, name: str, said: set[str]):
    (tmp_path / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3, encoding="utf-8")
    given = ("base_model=builtin:tiny", f"dataset={tmp_path / 'data.jsonl'}", f"output_dir={tmp_path / 'out'}")
    loaded = load(Request(name, sets=(*given, "hardware=cpu")), registry)
    notices = not_as_asked(loaded, make_plan(loaded, registry).plan)
    assert {": ".join(notice.split(": ")[:2]) for notice in notices} == said


def test_a_run_says_what_of_a_device_block_the_machine_has_not(registry: Registry, tmp_path: Path):
    (tmp_path / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3, encoding="utf-8")
    path = tmp_path / "s.yaml"
    path.write_text("optimization: {cpu: {tf32: true, batch_size: 2}}\n", encoding="utf-8")
    given = ("base_model=builtin:tiny", f"dataset={tmp_path / 'data.jsonl'}", f"output_dir={tmp_path / 'out'}")
    loaded = load(Request(str(path), sets=(*given, "hardware=cpu")), registry)
    (notice,) = not_as_asked(loaded, make_plan(loaded, registry).plan)
    assert notice.startswith("training.tf32: off: ")


def test_a_splitter_beside_named_held_out_rows_is_said_to_do_nothing(registry: Registry, tmp_path: Path):
    for name in ("data", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3, encoding="utf-8")
    path = tmp_path / "s.yaml"
    path.write_text("name: s\ndata_splitter: random\n", encoding="utf-8")
    given = ("base_model=builtin:tiny", f"dataset={tmp_path / 'data.jsonl'}", f"output_dir={tmp_path / 'out'}")
    for more, said in (((), []), ((f"dataset.eval_path={tmp_path / 'held_out.jsonl'}",), ["data_splitter"])):
        loaded = load(Request(str(path), sets=(*given, *more, "hardware=cpu")), registry)
        notices = not_as_asked(loaded, make_plan(loaded, registry).plan)
        assert [notice.partition(":")[0] for notice in notices] == said


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fragments(registry: Registry, path: Path, tmp_path: Path):
    if path.parent.name in SEVERAL_BLOCKS:
        assert set(check_fragment(path, registry).keys) <= set(FineTunerConfig.model_fields)
        return
    body = "".join(f"  {line}\n" for line in path.read_text(encoding="utf-8").splitlines())
    wrapped = tmp_path / "fragment.yaml"
    wrapped.write_text(f"{path.parent.name}:\n{body}", encoding="utf-8")
    assert check_fragment(wrapped, registry).keys == (path.parent.name,)
    assert read_yaml(path).values


def test_the_committed_schema_is_current(registry: Registry):
    committed = json.loads((ROOT / "strategy.schema.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(json_schema(registry))), (
        "run: llamafarm schema --output strategy.schema.json --overwrite"
    )


def test_the_schema_is_what_old_tools_read(registry: Registry):
    text = json.dumps(json_schema(registry))
    assert "$defs" not in text
    assert "prefixItems" not in text


@pytest.mark.parametrize("path", [*STRATEGIES, *WHOLE], ids=lambda path: path.stem)
def test_the_schema_accepts_what_the_loader_accepts(path: Path):
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    values = yaml.load(path.read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "strategy.schema.json").read_text(encoding="utf-8"))
    errors = list(Draft7Validator(schema).iter_errors(values))
    assert errors == []


def test_the_schema_refuses_what_the_loader_refuses():
    schema = json.loads((ROOT / "strategy.schema.json").read_text(encoding="utf-8"))
    for values in (
        {"nmae": "x"},
        {"fine_tuner": {"type": "pytorhc"}},
        {"fine_tuner": {"type": "pytorch", "config": {"training": {"learning_rat": 1}}}},
        {"fine_tuner": {"type": "pytorch", "config": {"method": {"type": "lora", "rr": 3}}}},
        {"data_splitter": "hsh"},
    ):
        assert list(Draft7Validator(schema).iter_errors(values)), values
