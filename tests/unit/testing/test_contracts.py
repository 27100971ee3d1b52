"""The contract suites find what they are for: each is given components that break one promise."""

from __future__ import annotations

import importlib
import random
import textwrap
from types import MappingProxyType

import pytest
from pydantic import Field

from llamafarm.api import (
    AdapterSpec,
    Config,
    DataSplitter,
    DeviceSpec,
    HardwareProfile,
    Method,
    NoConfig,
    Probe,
    Suggestion,
    TrainingResult,
)
from llamafarm.testing.contracts import (
    ComponentContract,
    FineTunerContract,
    HardwareContract,
    MethodContract,
    SplitterContract,
)
from llamafarm.testing.plugin import Finished


class Splitter(DataSplitter[NoConfig]):
    name = "bad"
    answer = staticmethod(lambda rows: [row.index % 2 == 0 for row in rows])

    def held_out(self, rows):
        return self.answer(list(rows))


def suite(base, component, **attributes):
    return type("Suite", (base,), {"component": component, **attributes})()


def splitter(answer):
    return suite(SplitterContract, type("Bad", (Splitter,), {"answer": staticmethod(answer)}))


def test_the_good_splitter_passes():
    good = suite(SplitterContract, Splitter)
    good.test_answers_for_each_row_once(10)
    good.test_leaves_no_side_empty(10)
    good.test_answers_the_same_again()
    good.test_leaves_rows_alone()


def test_splitters_that_answer_too_little_or_with_something_else():
    with pytest.raises(AssertionError):
        splitter(lambda rows: [True] * (len(rows) - 1)).test_answers_for_each_row_once(10)
    with pytest.raises(AssertionError):
        splitter(lambda rows: [1] * len(rows)).test_answers_for_each_row_once(10)


@pytest.mark.parametrize("side", [True, False])
def test_splitters_that_leave_a_side_empty(side):
    with pytest.raises(AssertionError):
        splitter(lambda rows: [side] * len(rows)).test_leaves_no_side_empty(10)


def test_splitters_that_answer_differently_each_time():
    with pytest.raises(AssertionError):
        splitter(lambda rows: [random.random() < 0.5 for _ in rows]).test_answers_the_same_again()


def test_splitters_that_change_rows():
    def answer(rows):
        rows[0].fields["seen"] = True
        return [True] * len(rows)

    with pytest.raises(AssertionError):
        splitter(answer).test_leaves_rows_alone()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that every interpreter can import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    def write(text):
        (tmp_path / "bad_component.py").write_text(textwrap.dedent(text), encoding="utf-8")
        monkeypatch.delitem(importlib.sys.modules, "bad_component", raising=False)
        return importlib.import_module("bad_component").Bad

    return write


SPLITTER = """
    from llamafarm.api import DataSplitter, NoConfig

    class Bad(DataSplitter[NoConfig]):
        name = "bad"

        def held_out(self, rows):
            {body}
"""


def test_splitters_that_depend_on_the_process(module):
    bad = module(SPLITTER.format(body="return [hash(str(sorted(row.fields.items()))) % 2 == 0 for row in rows]"))
    with pytest.raises(AssertionError):
        suite(SplitterContract, bad).test_answers_the_same_in_every_process()


def test_components_that_import_torch(module):
    bad = module("import torch\n" + textwrap.dedent(SPLITTER.format(body="return []")))
    with pytest.raises(AssertionError, match="torch"):
        suite(SplitterContract, bad).test_imports_nothing_heavy()


def test_components_that_nobody_registers():
    with pytest.raises(AssertionError, match="no installed plugin registers it"):
        suite(ComponentContract, Splitter).test_is_registered_by_an_installed_plugin()


class Inner(Config):
    silent: int = 1


class Options(Config):
    aliases = MappingProxyType({"n": "number"})

    number: int = Field(1, description="A number.")
    inner: Inner = Field(default_factory=Inner, description="More.")


def configured(**body):
    config = type("Odd", (Options,), {"__module__": __name__, **body})
    return suite(ComponentContract, type("Bad", (Splitter,), {"Config": config}))


def test_options_without_a_description_are_found_where_they_are():
    with pytest.raises(AssertionError, match=r"Inner\.silent"):
        configured().test_every_option_is_described()


@pytest.mark.parametrize("aliases", [{"number": "inner"}, {"m": "nothing"}])
def test_aliases_that_hide_an_option_or_lead_nowhere(aliases):
    configured().test_aliases_lead_to_options()
    with pytest.raises(AssertionError):
        configured(aliases=MappingProxyType(aliases)).test_aliases_lead_to_options()


def test_configurations_that_are_open_or_can_change():
    configured().test_refuses_unknown_options()
    configured().test_configuration_cannot_change()
    with pytest.raises(pytest.fail.Exception):
        configured(model_config={"extra": "ignore"}).test_refuses_unknown_options()
    with pytest.raises(pytest.fail.Exception):
        configured(model_config={"frozen": False}).test_configuration_cannot_change()


class Profile(HardwareProfile[NoConfig]):
    name = "bad"
    reason = "found"
    suggestions: tuple[Suggestion, ...] = ()

    def probe(self):
        return Probe(DeviceSpec("odd", "a device"), self.reason)

    def suggest(self, device):
        return self.suggestions


def profile(**body):
    return suite(HardwareContract, type("Bad", (Profile,), body))


def test_profiles_that_give_no_reason():
    profile().test_finds_a_device_or_says_why_not()
    with pytest.raises(AssertionError):
        profile(reason=" ").test_finds_a_device_or_says_why_not()


@pytest.mark.parametrize(
    "suggestions",
    [
        [Suggestion("training.bf17", True, "odd")],
        [Suggestion("training.batch_size", 0, "odd")],
        [Suggestion("training.bf16", True, "")],
        [Suggestion("training.bf16", True, "one"), Suggestion("training.bf16", False, "two")],
    ],
)
def test_profiles_that_suggest_nonsense(suggestions):
    profile(suggestions=[Suggestion("training.bf16", True, "it can")]).test_suggests_valid_settings_with_reasons()
    with pytest.raises((AssertionError, ValueError)):
        profile(suggestions=suggestions).test_suggests_valid_settings_with_reasons()


class Everything(Method[NoConfig]):
    """Trains the base and does not say so."""

    name = "bad"
    spec = AdapterSpec("lora")

    def adapter(self):
        return self.spec

    def apply(self, model, run):
        return model.requires_grad_(True)


def test_methods_that_train_the_base_in_secret(tiny_model_dir, tmp_path):
    with pytest.raises(AssertionError, match="weights of the base are trained"):
        suite(MethodContract, Everything).test_trains_what_it_says("llama", tiny_model_dir, tmp_path)
    honest = type("Honest", (Everything,), {"spec": AdapterSpec("full", changes_base=True)})
    suite(MethodContract, honest).test_trains_what_it_says("llama", tiny_model_dir, tmp_path)


def test_methods_that_train_nothing(tiny_model_dir, tmp_path):
    frozen = type("Frozen", (Everything,), {"apply": lambda self, model, run: model.requires_grad_(False)})
    with pytest.raises(AssertionError, match="nothing to train"):
        suite(MethodContract, frozen).test_trains_what_it_says("llama", tiny_model_dir, tmp_path)


def test_methods_whose_parameters_get_no_gradient(tiny_model_dir, tmp_path):
    import torch

    def apply(self, model, run):
        model.requires_grad_(False)
        model.unused = torch.nn.Parameter(torch.zeros(1))
        model.lm_head.weight.requires_grad_(True)
        return model

    idle = type("Idle", (Everything,), {"apply": apply})
    with pytest.raises(AssertionError, match="unused gets no gradient"):
        suite(MethodContract, idle).test_gradients_reach_what_is_trained("llama", tiny_model_dir, tmp_path)


def test_methods_that_declare_nonsense():
    shapeless = type("Shapeless", (Everything,), {"spec": AdapterSpec("lora", {"r": object()})})
    with pytest.raises(TypeError):
        suite(MethodContract, shapeless).test_declares_its_adapter()
    wrong = type("Wrong", (Everything,), {"training_defaults": MappingProxyType({"learning_rte": 1})})
    with pytest.raises(ValueError, match="learning_rte"):
        suite(MethodContract, wrong).test_training_defaults_are_valid()


def trained(tmp_path, **changes):
    """A suite whose runs end like this."""
    folder = tmp_path / "output"
    folder.mkdir(exist_ok=True)
    (folder / "model").write_text("weights")
    parts = {"metrics": {"train_loss": 1.0}, "model_dir": folder, "trainable_parameters": 1, "total_parameters": 2}
    result = TrainingResult(**(parts | changes))
    found = suite(FineTunerContract, None)
    found.train = lambda *_: Finished(result, (), folder)
    return found


@pytest.mark.parametrize(
    "changes",
    [{"metrics": {}}, {"metrics": {"train_loss": float("nan")}}, {"trainable_parameters": 3}],
)
def test_fine_tuners_with_a_bad_result(tmp_path, changes):
    trained(tmp_path).test_leaves_a_result(None, None, None)
    with pytest.raises(AssertionError):
        trained(tmp_path, **changes).test_leaves_a_result(None, None, None)


def test_fine_tuners_that_save_elsewhere(tmp_path):
    with pytest.raises(AssertionError):
        trained(tmp_path, model_dir=tmp_path).test_leaves_a_result(None, None, None)


def test_fine_tuners_that_differ_from_run_to_run(tmp_path):
    found = trained(tmp_path)
    found.test_same_seed_same_figures(None, None, None)
    found.train = lambda *_: Finished(TrainingResult({"train_loss": random.random()}, tmp_path), (), tmp_path)
    with pytest.raises(AssertionError):
        found.test_same_seed_same_figures(None, None, None)


def test_fine_tuners_that_write_elsewhere(tmp_path, tiny_dataset, monkeypatch):
    found = trained(tmp_path)
    arguments = (None, tiny_dataset, None, tmp_path, monkeypatch)
    found.test_writes_into_the_output_folder_alone(*arguments)
    found.train = lambda *_: (tmp_path / "elsewhere" / "stray").write_text("")
    (tmp_path / "elsewhere").rmdir()
    with pytest.raises(AssertionError):
        found.test_writes_into_the_output_folder_alone(*arguments)
