"""Datasets by name: `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import DatasetConfig, PreparedData
from llamafarm.data.prepare import prepare
from llamafarm.errors import DataError, LlamaFarmError

ALPACA = [{"instruction": "open", "input": "the door", "output": "Done."}]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a registry and the files it names; returns what reads one of its datasets."""
    monkeypatch.chdir(tmp_path)

    def write(entry: dict[str, Any], rows: list[Any], name: str = "mine", **dataset: Any) -> PreparedData:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        (folder / "rows.json").write_text(json.dumps(rows))
        file = folder / "dataset_info.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {"mine": {"file_name": "rows.json"} | entry}))
        return prepare(DatasetConfig(path=name, **dataset), None, notice=print)

    return write


def turns(data: PreparedData) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in data.train[0].messages]


def problem(caught: Any) -> str:
    return str(caught.value)


def test_a_name_stands_for_its_file(registry, capsys):
    assert turns(registry({}, ALPACA)) == [("user", "open\n\nthe door"), ("assistant", "Done.")]
    assert "as dataset_info.json says" in capsys.readouterr().out


def test_columns_are_those_that_the_entry_names(registry):
    columns = {"prompt": "question", "response": "answer", "system": "who", "history": "before"}
    row = {"question": "q", "answer": "a", "who": "s", "before": [["q0", "a0"]], "input": "not named"}
    assert turns(registry({"columns": columns}, [row])) == [
        ("system", "s"),
        ("user", "q0"),
        ("assistant", "a0"),
        ("user", "q"),
        ("assistant", "a"),
    ]


def test_a_prompt_without_response_is_raw_text(registry):
    assert registry({"columns": {"prompt": "content"}}, [{"content": "A text."}]).train[0].text == "A text."


def test_sharegpt_with_tags_tools_and_calls(registry):
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "system": "sys", "tools": "kit"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"},
    }
    talk = [
        {"who": "U", "what": "Is it warm?"},
        {"who": "function_call", "what": '{"name": "thermometer", "arguments": {"room": "hall"}}'},
        {"who": "observation", "what": "21"},
        {"who": "A", "what": "Yes."},
    ]
    data = registry(entry, [{"talk": talk, "sys": "Be brief.", "kit": '[{"name": "thermometer"}]'}])
    assert turns(data) == [
        ("system", "Be brief."),
        ("user", "Is it warm?"),
        ("assistant", ""),
        ("tool", "21"),
        ("assistant", "Yes."),
    ]
    assert data.train[0].messages[2].tool_calls[0]["function"] == {"name": "thermometer", "arguments": {"room": "hall"}}
    assert data.train[0].tools[0]["name"] == "thermometer"


def test_openai_turns_need_no_tags(registry):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    assert turns(registry({"formatting": "openai"}, rows)) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        (
            {"columns": {"prompt": "instruction", "query": "input", "chosen": "good", "rejected": "bad"}},
            {"instruction": "q", "input": "i", "good": "yes", "bad": "no"},
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "conversations", "chosen": "good", "rejected": "bad"}},
            {
                "conversations": [{"from": "human", "value": "q\n\ni"}],
                "good": {"from": "gpt", "value": "yes"},
                "bad": {"from": "gpt", "value": "no"},
            },
        ),
    ],
)
def test_rankings_are_preferences(registry, entry, row):
    data = registry(entry | {"ranking": True}, [row])
    assert turns(data) == [("user", "q\n\ni")]
    assert [data.train[0].chosen[0].content, data.train[0].rejected[0].content] == ["yes", "no"]


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        (
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "good"}},
            {"instruction": "q", "output": "a", "good": False},
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "good"}},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "good": False},
        ),
    ],
)
def test_judged_answers_are_unpaired(registry, entry, row):
    example = registry(entry, [row]).train[0]
    assert (example.messages[0].content, example.chosen[0].content, example.label) == ("q", "a", False)


def test_samples_subsets_and_curricula_work_as_with_files(registry):
    rows = [{"instruction": str(n), "output": "a", "level": n} for n in range(9)]
    assert len(registry({"num_samples": 4}, rows).train) == 4
    assert len(registry({}, rows, name="mine#3").train) == 3
    data = prepare(DatasetConfig(path="mine"), None, notice=print, difficulty="level")
    assert [example.difficulty for example in data.train] == list(map(float, range(9)))


def test_names_serve_as_sources_and_as_held_out_rows(registry):
    other = [{"instruction": "shut", "output": "Done."}]
    registry({}, ALPACA)
    Path("data/other.json").write_text(json.dumps(other))
    file = Path("data/dataset_info.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"other": {"file_name": "other.json"}}))
    mixed = DatasetConfig.model_validate({"sources": [{"path": "mine", "task": "A"}, {"path": "other"}]})
    assert {example.task for example in prepare(mixed, None, notice=print).train} == {"A", None}
    apart = DatasetConfig(path="mine", eval_path="other", dataset_dir="data")
    assert len(prepare(apart, None, notice=print).eval) == 1


def test_an_unknown_name_is_told_the_known_ones(registry):
    with pytest.raises(DataError, match=r"no dataset 'mnie'; there is 'mine'.*did you mean 'mine'.*LF-DATA-200"):
        registry({}, ALPACA, name="mnie")


def test_several_names_in_one_are_sources(registry):
    registry({}, ALPACA)
    with pytest.raises(DataError, match=r"write dataset.sources: \[mine, mine\]"):
        registry({}, ALPACA, name="mine,mine")


def test_files_and_folders_are_no_names(registry, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl").write_text('{"text": "of the folder"}\n')
    assert registry({}, ALPACA).train[0].text == "of the folder"
    with pytest.raises(LlamaFarmError, match="LF-DATA-001"):
        registry({}, ALPACA, name="gone.jsonl")


def test_the_hub_is_asked_only_if_there_is_no_file(registry, monkeypatch):
    from llamafarm.data import sources

    asked = []
    monkeypatch.setattr(sources, "hub_rows", lambda name, subset: asked.append((name, subset)) or iter(()))
    entry = {"hf_hub_url": "someone/rows", "subset": "de", "split": "test"}
    assert len(registry(entry, ALPACA).train) == 1
    assert not asked
    registry(entry | {"file_name": None}, ALPACA)
    assert asked == [("someone/rows:test", "de")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"formatting": "alpacca"}, "formatting 'alpacca' is not known.*did you mean 'alpaca'"),
        ({"file_nam": "x"}, "unknown key 'file_nam'.*did you mean 'file_name'"),
        ({"columns": {"promt": "x"}}, "unknown column 'promt'.*did you mean 'prompt'"),
        ({"tags": {"usertag": "x"}}, "unknown tag 'usertag'"),
        ({"columns": {"prompt": 3}}, "columns: expected an object of texts"),
        ({"columns": {"images": "x"}}, "rows with images cannot be trained on"),
        ({"file_name": None, "script_url": "x"}, "script_url: rows cannot be fetched from there"),
        ({"file_name": None}, "neither file_name nor hf_hub_url"),
    ],
)
def test_what_an_entry_asks_for_in_vain_is_an_error(registry, entry, message):
    with pytest.raises(DataError, match=rf"(?s){message}.*LF-DATA-202"):
        registry(entry, ALPACA)


@pytest.mark.parametrize("content", ["{", "[]", '{"mine": 3}', b"\xff"])
def test_a_damaged_registry_is_an_error(registry, content):
    registry({}, ALPACA)
    data = content if isinstance(content, bytes) else content.encode()
    Path("data/dataset_info.json").write_bytes(data)
    with pytest.raises(DataError, match="LF-DATA-201"):
        prepare(DatasetConfig(path="mine"), None, notice=print)


def test_a_folder_without_registry_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"no dataset_info.json in the folder.*LF-DATA-201"):
        prepare(DatasetConfig(path="mine", dataset_dir=str(tmp_path)), None, notice=print)


def test_faults_of_rows_name_their_place(registry):
    with pytest.raises(DataError, match=r"rows.json:1: 'output' is missing"):
        registry({}, [*ALPACA, {"instruction": "q"}])


def test_the_registry_beside_a_strategy_is_the_first(registry, tmp_path: Path):
    from llamafarm.core.load import load
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request

    registry({}, ALPACA)
    strategy = tmp_path / "data" / "strategy.yaml"
    strategy.write_text("name: x\nfine_tuner: {config: {base_model: m, dataset: mine}}\n")
    loaded = load(Request(str(strategy)), load_registry())
    assert loaded.tuner_config.dataset.dataset_dir == str(tmp_path / "data")
