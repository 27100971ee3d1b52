"""What a run imports: nothing that it does not use, and all the same whatever it does use."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from llamafarm.models.lean import SWITCH
from llamafarm.testing.fresh import fresh

TRAIN = """
import contextlib, io, sys
from llamafarm.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
    try:
        main(arguments[0])
    except SystemExit as ended:
        code = ended.code
assert code == 0, told.getvalue()
from llamafarm.models.stand_in import is_waiting
there = sorted(name for name, module in sys.modules.items() if module is not None and not is_waiting(module))
"""

IDLE = (
    *("torch._inductor", "torch._dynamo.symbolic_convert", "torch._functorch.aot_autograd", "torch.onnx.ops"),
    *("scipy.optimize", "bitsandbytes", "networkx", "transformers.trainer", "transformers.loss.loss_d_fine"),
    *("datasets", "trl", "pandas", "sklearn", "matplotlib", "tensorboard", "llamafarm_tuners.llamafactory._launch"),
)
"""Modules that are large, and that libraries or other commands import; not those that torch imports by itself."""


@pytest.fixture
def strategy(tmp_path, tiny_model_dir, monkeypatch):
    """Write a strategy with a method's type; return the arguments that train it."""
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    rows = [{"prompt": f"say {n} ", "completion": f"it is {n}"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def write(kind: str, **training: object) -> list[str]:
        config = {
            "base_model": str(tiny_model_dir("llama")),
            "dataset": str(tmp_path / "rows.jsonl"),
            "method": {"type": kind, "r": 2},
            "training": {"max_steps": 1, "batch_size": 2, **training},
        }
        path = tmp_path / f"{kind}.yaml"
        path.write_text(json.dumps({"fine_tuner": {"type": "pytorch", "config": config}}))
        return ["train", "-s", str(path), "--output-dir", str(tmp_path / "out"), "-q"]

    return write


def test_a_run_with_lora_imports_nothing_that_it_does_not_use(strategy):
    there = set(fresh(f"{TRAIN}\nanswer = there", strategy("lora")))
    assert there.isdisjoint(IDLE)
    assert not {name for name in there if name.startswith(("scipy.optimize", "torch._inductor", "bitsandbytes"))}
    assert {"torch", "peft", "transformers.models.llama.modeling_llama"} <= there  # it did train


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_run_with_qlora_gets_its_layers(strategy):
    code = f"{TRAIN}\nimport peft, bitsandbytes\n"
    code += "answer = ['bitsandbytes.nn.modules' in there, hasattr(peft.tuners.lora, 'Linear4bit')]"
    assert fresh(code, strategy("qlora")) == [True, True]


def test_a_compiled_run_gets_its_compiler(strategy):
    found = fresh(f"{TRAIN}\nanswer = there", strategy("lora", torch_compile=True, torch_compile_backend="eager"))
    assert "torch._dynamo.symbolic_convert" in found


LEAN = """
from llamafarm.models.lean import lean_imports
with lean_imports():
    import torch, peft, transformers.modeling_utils
"""


def test_the_switch_has_everything_imported(monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    waits = "import sys\nanswer = type(sys.modules['torch._dynamo']).__name__"
    assert fresh(f"{LEAN}\n{waits}") == "module"
    monkeypatch.delenv(SWITCH)
    assert fresh(f"{LEAN}\n{waits}") == "StandIn"


def test_what_is_imported_is_left_out_of_collections():
    code = f"{LEAN}\nimport gc\nanswer = [gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects())]"
    enabled, frozen, collected = fresh(code)
    assert enabled
    assert frozen
    assert collected < 20_000


def test_where_torch_is_there_already_the_collector_is_left_alone():
    code = f"import torch, gc\n{LEAN}\nanswer = [gc.isenabled(), gc.get_freeze_count()]"
    enabled, frozen = fresh(code)
    assert enabled
    assert frozen < 1_000


def test_what_was_kept_from_the_compiler_before_it_came_stays_so():
    code = f"""{LEAN}
import sys
from llamafarm.models.stand_in import is_waiting
seen = []
@torch.compiler.disable
def kept(x):
    "Kept."
    seen.append(torch.compiler.is_compiling())
    return x + 1
@torch.compiler.disable(reason="so")
def named(x):
    return x + 1
before = [is_waiting(sys.modules["torch._dynamo"]), kept.__name__, kept.__doc__, kept(torch.ones(1)).item()]
graphs = []
def backend(module, inputs):
    graphs.append(module)
    return module.forward
result = torch.compile(lambda x: named(kept(x * 2)) * 3, backend=backend)(torch.ones(1)).item()
answer = [before, result, len(graphs), seen, is_waiting(sys.modules["torch._dynamo"])]
"""
    before, result, graphs, seen, waits = fresh(code)
    assert before == [True, "kept", "Kept.", 2.0]
    assert result == (2 + 1 + 1) * 3
    assert graphs == 2  # before and behind what is kept from it
    assert seen == [False, False]
    assert not waits


def test_an_optimizer_needs_no_compiler_and_counts_the_same():
    code = f"""{LEAN}
import sys
from llamafarm.models.stand_in import is_waiting
if arguments[0]:
    torch._dynamo.config
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    weight.square().sum().backward()
    optimizer.step()
answer = [is_waiting(sys.modules["torch._dynamo"]), weight.tolist()]
"""
    lean, with_compiler = fresh(code, False), fresh(code, True)
    assert lean[0]
    assert not with_compiler[0]
    assert lean[1] == with_compiler[1]


def test_a_broken_bitsandbytes_breaks_only_what_uses_it(tmp_path, monkeypatch):
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise RuntimeError('no such library on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = f"""{LEAN}
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), peft.LoraConfig(target_modules=["0"]))
import bitsandbytes
try:
    bitsandbytes.nn
except RuntimeError as error:
    answer = str(error)
"""
    assert fresh(code) == "no such library on this machine"


def test_losses_for_pictures_are_there_for_those_who_have_pictures():
    pytest.importorskip("scipy")
    code = f"""{LEAN}
import sys
from transformers.loss.loss_utils import LOSS_MAPPING
before = "scipy.optimize" in sys.modules
import transformers.loss.loss_for_object_detection as losses
matcher = losses.HungarianMatcher()
boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
outputs = {{"logits": torch.zeros(1, 2, 3), "pred_boxes": boxes}}
found = matcher(outputs, [{{"class_labels": torch.tensor([1]), "boxes": boxes[0, 1:]}}])
same = LOSS_MAPPING["ForObjectDetection"].__name__
answer = [before, found[0][0].tolist(), same]
"""
    assert fresh(code) == [False, [1], "ForObjectDetectionLoss"]


def test_models_are_listed_as_transformers_lists_them():
    code = """
from llamafarm.models.lean import lean_imports
with lean_imports():
    import transformers.models
    import transformers.utils.import_utils as utils
    mine = utils.define_import_structure(transformers.models.__file__)
utils.define_import_structure.cache_clear()
real = utils.define_import_structure(transformers.models.__file__)
answer = [mine == real, len(real) > 1, utils.define_import_structure.__module__]
"""
    assert fresh(code) == [True, True, "transformers.utils.import_utils"]
