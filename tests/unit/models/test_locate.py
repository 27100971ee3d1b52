from __future__ import annotations

from pathlib import Path

import pytest

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError, NetworkError
from llamafarm.models import hub
from llamafarm.models.locate import builtin_models, locate
from llamafarm.testing.fresh import heavy_after


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return model


def test_a_folder_is_found_as_given(folder: Path):
    located = locate(str(folder))
    assert (located.kind, located.folder, located.given) == ("folder", folder, str(folder))
    assert located.public_name == "my-model"
    assert not located.is_adapter


def test_an_adapter_folder_is_known_as_one(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert locate(str(tmp_path)).is_adapter


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_other_names_are_hub_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    located = locate(name)
    assert (located.kind, located.source, located.public_name) == ("hub", name, name)


@pytest.mark.parametrize("name", ["./model", "/no/such/model", "a/b/c", "~/no-such-model", "models/tiny"])
def test_paths_that_do_not_exist_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match=r"no such model folder: .*\[LF-MODEL-001\]"):
        locate(name)


def test_a_misspelt_folder_names_its_neighbour(folder: Path):
    with pytest.raises(ModelError, match="did you mean 'my-model'"):
        locate(str(folder.parent / "my-modell"))


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"the folder holds notes.txt \[LF-MODEL-002\]"):
        locate(str(tmp_path))


def test_a_folder_above_a_model_points_into_it(folder: Path):
    with pytest.raises(ModelError, match=r"did you mean .*my-model"):
        locate(str(folder.parent))


def test_a_file_is_no_model(folder: Path):
    with pytest.raises(ModelError, match="is a file"):
        locate(str(folder / "config.json"))


def test_an_unknown_builtin_lists_what_there_is():
    with pytest.raises(ModelError, match="no built-in model 'nothing'"):
        locate("builtin:nothing")


@pytest.mark.parametrize("name", builtin_models())
def test_builtin_models_are_found(name: str):
    located = locate(f"builtin:{name}")
    assert located.folder is not None
    assert located.public_name == f"builtin:{name}"


def test_a_hub_model_that_is_not_cached_says_what_to_do(tmp_path: Path):
    config = BaseModelConfig(cache_dir=str(tmp_path))
    for ask in (hub.require_cached, hub.fetch_config):
        with pytest.raises(NetworkError, match=r"hf download nobody/nothing.*\[LF-NET-001\]"):
            ask("nobody/nothing", config)


def test_a_cached_hub_model_is_found_offline(tmp_path: Path):
    snapshot = tmp_path / "models--nobody--something" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    config = BaseModelConfig(cache_dir=str(tmp_path))
    hub.require_cached("nobody/something", config)
    assert hub.fetch_config("nobody/something", config) == snapshot / "config.json"


def test_locating_imports_nothing_heavy():
    assert (
        heavy_after("import llamafarm.models.hub; from llamafarm.models.locate import locate; locate('gpt2')") == set()
    )
