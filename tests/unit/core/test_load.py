from __future__ import annotations

import pytest
from core_test_components import Cpu, Dora, Full, Lora, Pytorch
from core_test_components import registry as make_registry

from llamafarm.core.explain import explain, resolved_yaml, secrets
from llamafarm.core.load import load
from llamafarm.core.request import Flag, Request
from llamafarm.core.yaml_source import parse_yaml
from llamafarm.errors import ExitCode, PluginError, StrategyError

GOOD = """\
name: x
fine_tuner:
  type: pytorch
  config:
    base_model: builtin:tiny
    dataset: {path: a.jsonl}
    method: {type: lora, lora_rank: 16, lora_alpha: 32}
    training: {num_epochs: 3, learning_rate: 2e-4, adam_epsilon: 1e-8, eval_strategy: no}
optimization:
  cpu: {torch_dtype: float32, per_device_batch_size: 1}
"""


def dump(loaded):
    return loaded.strategy.model_dump(mode="json")


def problems(registry, name, *, flags=(), sets=()):
    with pytest.raises(StrategyError) as caught:
        load(Request(name, flags, sets), registry)
    return {problem.where: problem for problem in caught.value.problems}


def test_documented_shape_with_aliases_and_shorthands(registry, write):
    loaded = load(Request(write(GOOD)), registry)
    config = loaded.tuner_config
    assert (config.method[0].r, config.method[0].alpha) == (16, 32)
    assert config.base_model.huggingface_id == "builtin:tiny"
    assert config.training.learning_rate == 2e-4
    assert config.training.adam_epsilon == 1e-8
    assert config.training.eval_strategy == "no"


def test_full_and_bare_shape_mean_the_same(registry, write):
    bare = write(GOOD)
    indented = "\n".join(f"  {line}" for line in GOOD.splitlines()[1:8])
    full = write("name: x\ncomponents:\n" + indented + "\n" + "\n".join(GOOD.splitlines()[8:]), "full.yaml")
    assert dump(load(Request(bare), registry)) == dump(load(Request(full), registry))


def test_precedence_weak_to_strong(registry, write, monkeypatch):
    write("batch_size: 11\nlearning_rate: 0.11\nseed: 11\nwarmup_steps: 11\n", "configs/training/base.yaml")
    text = (
        "defaults: {training: base}\nfine_tuner: {config: {method: full, training: {learning_rate: 0.22, seed: 22}}}\n"
    )
    name = write(text)
    assert load(Request(name), registry).tuner_config.training.batch_size == 11, "fragment beats profile"
    assert load(Request(name), registry).tuner_config.training.learning_rate == 0.22, "strategy beats fragment"
    block = write(text + "optimization: {cpu: {learning_rate: 0.33}}\n")
    assert load(Request(block), registry).tuner_config.training.learning_rate == 0.33, "device block beats strategy"
    monkeypatch.setenv("LLAMAFARM_TRAINING__LEARNING_RATE", "0.44")
    assert load(Request(block), registry).tuner_config.training.learning_rate == 0.44, "environment beats device block"
    flag = Flag("training.learning_rate", 0.55, "--learning-rate")
    assert load(Request(block, (flag,)), registry).tuner_config.training.learning_rate == 0.55, "flag beats environment"
    sets = ("training.learning_rate=0.66",)
    loaded = load(Request(block, (flag,), sets), registry)
    assert loaded.tuner_config.training.learning_rate == 0.66, "--set beats flag"


def test_device_block_from_outside_counts(registry, write, monkeypatch):
    name = write("optimization: {cpu: {learning_rate: 0.33, warmup_steps: 3}}\n")
    sets = ("optimization.cpu.learning_rate=0.44", "optimization.cuda.seed=7")
    loaded = load(Request(name, (), sets), registry)
    training = loaded.tuner_config.training
    assert (training.learning_rate, training.warmup_steps, training.seed) == (0.44, 3, 42)
    found = {item.key: str(item.origin) for item in explain(loaded)}
    assert "--set optimization.cpu.learning_rate" in found["components.fine_tuner.config.training.learning_rate"]
    above = (*sets, "training.learning_rate=0.55")
    assert load(Request(name, (), above), registry).tuner_config.training.learning_rate == 0.55, "still a block"
    monkeypatch.setenv("LLAMAFARM_OPTIMIZATION__CPU__LEARNING_RATE", "0.66")
    assert load(Request(name), registry).tuner_config.training.learning_rate == 0.66
    assert load(Request(name, (), sets), registry).tuner_config.training.learning_rate == 0.44, "--set beats it"


def test_weak_defaults_method_below_profile_below_everything(registry, write):
    name = write("fine_tuner: {config: {method: full}}")
    origins = {item.key: item for item in explain(load(Request(name), registry))}
    prefix = "components.fine_tuner.config.training"
    assert origins[f"{prefix}.learning_rate"].value == 2e-5
    assert str(origins[f"{prefix}.learning_rate"].origin) == "method full"
    assert str(origins[f"{prefix}.batch_size"].origin) == "hardware profile cpu: small caches"
    assert str(origins[f"{prefix}.seed"].origin) == "default"


def test_every_value_knows_its_place(registry, write):
    loaded = load(Request(write(GOOD), (Flag("training.num_epochs", 1, "--epochs"),), ("method.r=4",)), registry)
    origins = {item.key.removeprefix("components.fine_tuner.config."): str(item.origin) for item in explain(loaded)}
    assert origins["method.0.r"] == "--set method.r"
    assert origins["method.0.alpha"] == "s.yaml:7:53"
    assert origins["method.0.type"] == "s.yaml:7:20"
    assert origins["training.num_epochs"] == "--epochs"
    assert origins["training.batch_size"] == "s.yaml:10:54"


def test_swap_drops_the_old_options_and_comes_before_leaves(registry, write):
    loaded = load(Request(write(GOOD), sets=("method.r=2", "method=dora")), registry)
    (method,) = loaded.tuner_config.method
    assert (method.type, method.r, method.alpha) == ("dora", 2, None)


class Other(Pytorch):
    name = "other"


def test_a_swap_takes_nothing_of_what_is_said_beside_it(write, monkeypatch):
    monkeypatch.setenv("LLAMAFARM_TRAINING__SEED", "5")
    flags = (Flag("training.num_epochs", 1, "--epochs"), Flag("method", "full", "--method"))
    sets = ("fine_tuner=other", "method=dora", "base_model=x")
    config = load(Request(write(GOOD), flags, sets), make_registry(Other, Pytorch, Dora, Full, Lora, Cpu)).tuner_config
    assert (config.training.num_epochs, config.training.seed) == (1, 5)
    assert config.method[0].type == "dora"  # what --set chooses wins over what a flag does


def test_fragment_options_survive_only_for_the_same_type(registry, write):
    write("{type: lora, r: 5}", "configs/method/five.yaml")
    same = write("defaults: {method: five}\nfine_tuner: {config: {method: {type: lora, alpha: 7}}}")
    (method,) = load(Request(same), registry).tuner_config.method
    assert (method.r, method.alpha) == (5, 7)
    other = write("defaults: {method: five}\nfine_tuner: {config: {method: {type: dora, alpha: 7}}}")
    (method,) = load(Request(other), registry).tuner_config.method
    assert (method.r, method.alpha) == (8, 7)


def test_a_stronger_alternative_removes_the_weaker(registry, write):
    name = write("fine_tuner: {config: {dataset: {generate: smart-home}}}")
    dataset = load(Request(name, (Flag("dataset.path", "x.jsonl", "--dataset"),)), registry).tuner_config.dataset
    assert (dataset.path, dataset.generate) == ("x.jsonl", None)


def test_stack_and_override_of_one_member(registry, write):
    name = write("fine_tuner: {config: {method: [lora, {type: full}]}}")
    methods = load(Request(name, sets=("method.lora.r=3",)), registry).tuner_config.method
    assert [(method.type) for method in methods] == ["lora", "full"]
    assert methods[0].r == 3


def test_all_errors_at_once_with_place_and_nearest_name(registry, write):
    name = write(
        """\
name: x
components:
  fine_tuner:
    type: pytorch
    config:
      base_model: {huggingface_id: a, from_scratch: {architecture: {}}}
      dataset: {path: a.jsonl, pathh: 3}
      method:
        type: lora
        rr: 16
        r: 3
        lora_r: 4
      training: {num_epochs: x, learning_rate: true, batch_size: 0, optim: adamw, max_steps: 1.5}
  data_splitter: {type: hsh}
trainin: {}
training: {}
optimization:
  cpu: {torch_dtype: float3, per_device_batch_sizee: 1}
  cdua: {}
description: ${NOPE}
"""
    )
    found = problems(registry, name, sets=("trainng.x=1", "learning_rate=3", "foo", "method.type=dora"))
    expected = {
        "s.yaml:6:53": ("LF-STRATEGY-026", "keep one"),
        "s.yaml:7:32": ("LF-STRATEGY-021", "did you mean 'path'?"),
        "s.yaml:10:9": ("LF-STRATEGY-021", "did you mean 'r'?"),
        "s.yaml:12:9": ("LF-STRATEGY-023", "keep 'r'"),
        "s.yaml:13:30": ("LF-STRATEGY-024", ""),
        "s.yaml:13:48": ("LF-STRATEGY-024", ""),
        "s.yaml:13:66": ("LF-STRATEGY-024", ""),
        "s.yaml:13:76": ("LF-STRATEGY-028", ""),
        "s.yaml:13:94": ("LF-STRATEGY-024", ""),
        "s.yaml:14:25": ("LF-STRATEGY-020", "did you mean 'hash'?"),
        "s.yaml:15:1": ("LF-STRATEGY-021", ""),
        "s.yaml:16:1": ("LF-STRATEGY-021", "it belongs under components.fine_tuner.config: training"),
        "s.yaml:18:22": ("LF-STRATEGY-028", ""),
        "s.yaml:18:30": ("LF-STRATEGY-021", "did you mean 'per_device_batch_size'?"),
        "s.yaml:19:3": ("LF-STRATEGY-021", "did you mean 'cuda'?"),
        "s.yaml:20:14": ("LF-STRATEGY-014", "set it, or write ${NOPE:-default}"),
        "--set trainng.x": ("LF-STRATEGY-021", "did you mean 'training'?"),
        "--set learning_rate": ("LF-STRATEGY-021", "write training.learning_rate"),
        "--set method.type": (
            "LF-STRATEGY-016",
            "write --set method=dora: it also drops the options of the old one",
        ),
        "": ("LF-STRATEGY-015", "write --set training.seed=7"),
    }
    assert {where: (problem.id, problem.hint) for where, problem in found.items()} == expected


@pytest.mark.parametrize(
    ("text", "id_", "where"),
    [
        ("a: [1,\n", "LF-STRATEGY-004", "s.yaml:2:1"),
        ("a: &x [*x]", "LF-STRATEGY-002", "s.yaml:1:4"),
        ("- 1", "LF-STRATEGY-005", "s.yaml"),
        ("", "LF-STRATEGY-005", "s.yaml"),
        ("name: !!python/name:os.system x", "LF-STRATEGY-006", "s.yaml:1:7"),
        ("? [1, 2]\n: 3", "LF-STRATEGY-007", "s.yaml:1:3"),
        ("name: a\nname: b", "LF-STRATEGY-008", "s.yaml:2:1"),
        ("name: ${training.seed}", "LF-STRATEGY-012", "s.yaml:1:7"),
        ("defaults: {training: nope}", "LF-STRATEGY-013", "s.yaml:1:22"),
        ("defaults: {trainin: nope}", "LF-STRATEGY-021", "s.yaml:1:21"),
        ("fine_tuner: [1]", "LF-STRATEGY-022", "s.yaml:1:13"),
        ("fine_tuner: {config: {training: 3}}", "LF-STRATEGY-022", "s.yaml:1:33"),
        ("fine_tuner: {config: {method: {r: 3}}}", "LF-STRATEGY-025", "s.yaml:1:31"),
        ("data_splitter: {config: {}}", "LF-STRATEGY-025", "s.yaml:1:16"),
        ("fine_tuner: {config: {method: dorra}}", "LF-STRATEGY-020", "s.yaml:1:31"),
        ("fine_tuner: {config: {dataset: {generate: {size: 3}}}}", "LF-STRATEGY-027", "s.yaml:1:43"),
        ("optimization: 3", "LF-STRATEGY-022", "s.yaml:1:15"),
        ("a: 1\n---\nb: 2", "LF-STRATEGY-004", "s.yaml:2:1"),
        ("a: " + "[" * 600 + "]" * 600, "LF-STRATEGY-002", None),
    ],
)
def test_hostile_and_wrong_files(registry, write, text, id_, where):
    found = problems(registry, write(text))
    assert id_ in {problem.id for problem in found.values()}
    if where is not None:
        assert next(problem.where for problem in found.values() if problem.id == id_) == where


def test_not_utf8_and_too_large(registry, write, tmp_path):
    write("name: x")
    (tmp_path / "s.yaml").write_bytes(b"name: x\ndescription: caf\xe9\n")
    assert problems(registry, "s.yaml")["s.yaml:2"].id == "LF-STRATEGY-003"
    (tmp_path / "s.yaml").write_bytes(b"name: " + b"x" * 1_000_001)
    assert problems(registry, "s.yaml")["s.yaml"].id == "LF-STRATEGY-002"


def test_equal_duplicates_are_said_and_different_ones_refused(write):
    assert parse_yaml("a: 1\nb: {c: 2}\nb: {c: 2}\n", "f").notices == [
        "f:3:1: b stands twice with the same value (first at f:2:1)"
    ]
    (problem,) = parse_yaml("a: 1\na: 2\n", "f").problems
    assert problem.where == "f:2:1"
    assert "1 (at f:1:1)" in problem.message


def test_equal_aliases_are_said_and_optim_wins_over_a_default_optimizer(registry, write):
    name = write(
        "fine_tuner: {config: {method: {type: lora, r: 2, lora_r: 2}, training: {optimizer: adamw_torch, optim: sgd}}}"
    )
    loaded = load(Request(name), registry)
    assert loaded.tuner_config.training.optim == "sgd"
    assert any("'lora_r' repeats 'r'" in notice for notice in loaded.notices)
    assert any("'optimizer' and 'optim' are one key" in notice for notice in loaded.notices)
    conflict = write("fine_tuner: {config: {training: {optimizer: adamw_8bit, optim: sgd}}}")
    assert "LF-STRATEGY-023" in {problem.id for problem in problems(registry, conflict).values()}


def test_environment_variables(registry, write, monkeypatch):
    config = "{base_model: {token: '${MY_TOKEN}'}, training: {seed: '${SEED}'}}"
    name = write(f"name: ${{RUN:-night}}-${{oc.env:WHO,nobody}}-$${{X}}\nfine_tuner: {{config: {config}}}")
    monkeypatch.setenv("SEED", "7")
    loaded = load(Request(name), registry)
    assert loaded.strategy.name == "night-nobody-${X}"
    assert loaded.tuner_config.training.seed == 7
    assert loaded.tuner_config.base_model.token is None
    assert any("MY_TOKEN is not set" in notice for notice in loaded.notices)


def test_secrets_never_show(registry, write, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hf_very_secret")
    name = write("fine_tuner: {config: {base_model: {token: '${MY_TOKEN}'}, training: {hub_token: hf_literal}}}")
    loaded = load(Request(name), registry)
    assert set(secrets(loaded)) == {"hf_very_secret", "hf_literal"}
    text = resolved_yaml(loaded)
    assert "hf_very_secret" not in text
    assert "hf_literal" not in text
    assert "${MY_TOKEN}" in text


def test_resolved_yaml_loads_again_to_the_same_strategy(registry, write):
    loaded = load(Request(write(GOOD)), registry)
    text = resolved_yaml(loaded)
    assert "# from: s.yaml:8:46" in text
    assert dump(load(Request(write(text, "again.yaml")), registry)) == dump(loaded)


def test_resolved_yaml_names_no_folder_of_this_machine(registry, write, tmp_path, monkeypatch):
    path = tmp_path / write(GOOD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = resolved_yaml(load(Request(str(path)), registry))
    assert str(tmp_path) not in text
    assert "# from: s.yaml:1:7" in text


def test_files_with_several_strategies(registry, write):
    name = write("version: 1\nstrategies:\n- {name: a, description: first}\n- {name: b, description: second}\n")
    assert load(Request(f"{name}:b"), registry).strategy.description == "second"
    with pytest.raises(StrategyError, match=r"choose one: s\.yaml:a, s\.yaml:b"):
        load(Request(name), registry)
    with pytest.raises(StrategyError, match="did you mean"):
        load(Request(f"{name}:bb"), registry)
    single = write("strategies: [{name: only}]", "one.yaml")
    assert load(Request(single), registry).strategy.name == "only"


def test_finding_strategies(registry, write):
    write("name: mine", "strategies/mine.yaml")
    assert load(Request("mine"), registry).strategy.name == "mine"
    with pytest.raises(StrategyError, match=r"unknown strategy 'mime'; did you mean 'mine'\?"):
        load(Request("mime"), registry)
    with pytest.raises(
        StrategyError, match=r"no such strategy file: strategies/mime\.yaml; did you mean 'mine\.yaml'\?"
    ):
        load(Request("strategies/mime.yaml"), registry)


def test_plugins_key(registry, write):
    ok = write("plugins: ['llamafarm-test>=0.5']")
    load(Request(ok), registry)
    for text, expected in [
        ("plugins: ['llamafarm-tset']", "did you mean 'llamafarm-test'"),
        ("plugins: ['llamafarm-test>=2']", "llamafarm-test 1.0 is installed, the strategy needs llamafarm-test>=2"),
        ("plugins: ['!!']", "is no requirement"),
    ]:
        with pytest.raises(PluginError, match=expected) as caught:
            load(Request(write(text)), registry)
        assert caught.value.exit_code == ExitCode.PLUGIN


def test_an_explicit_device_that_is_absent_still_validates(registry, write):
    loaded = load(Request(write("hardware: cuda\noptimization: {cuda: {use_bf16: true}}")), registry)
    assert loaded.device is None
    assert loaded.tuner_config.training.bf16 is True


def test_without_any_plugin_the_install_command_is_named(write):
    empty = make_registry(plugins=(), components={})
    with pytest.raises(PluginError, match=r"run: pip install -e \."):
        load(Request(write("name: x")), empty)
