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
    *("sympy", "torch.fx.experimental.symbolic_shapes", "torch.distributed.tensor", "torch.distributed.tensor._api"),
    *(
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "torch.export",
        "transformers.distributed.tensor_parallel",
    ),
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


LISTED = """
import hashlib, json
from transformers.utils.import_utils import define_import_structure
import transformers.models
found = define_import_structure(transformers.models.__file__)
plain = sorted([sorted(needs), sorted([name, sorted(given)] for name, given in names.items())]
               for needs, names in found.items())
answer = [len(plain) > 1, hashlib.sha256(json.dumps(plain).encode()).hexdigest(),
          define_import_structure.__module__, transformers.utils.import_utils.fetch__all__.__module__]
"""


def test_models_are_listed_as_transformers_lists_them():
    lean = "from llamafarm.models.lean import lean_imports\nwith lean_imports():\n    import transformers.models\n"
    mine = fresh(f"{lean}{LISTED}")
    assert mine == fresh(LISTED)
    assert mine[0]


ALONE = f"""{LEAN}
import sys
from llamafarm.models.stand_in import is_waiting
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
def waits(name):
    return is_waiting(sys.modules[name])
"""


def test_tensors_on_several_devices_come_when_they_are_used():
    code = f"""{ALONE}
import transformers.distributed.sharding_utils as user
from torch.distributed.tensor import DTensor
plain = [isinstance(torch.ones(1), DTensor), user.DTensor is DTensor, waits("torch.distributed.tensor")]
torch.compile(lambda x: x * 2, backend="aot_eager")(torch.ones(3))  # with tensors of a type that is foreign to torch
group()
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
mesh = init_device_mesh("cpu", (1,))
one = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
both = (one + one).redistribute(mesh, [Replicate()])
from torch.optim.optimizer import _foreach_supported_types
answer = [plain, isinstance(one, DTensor), isinstance(one, user.DTensor), type(both).__name__, both.to_local().tolist(),
          type(user.DTensor).__name__, type(one) in _foreach_supported_types, waits("torch.distributed.tensor")]
"""
    answer = [[False, True, True], True, True, "DTensor", [0.0, 2.0, 4.0, 6.0], type(type).__name__, True, False]
    found = fresh(code)
    answer[5] = found[5]  # whatever the type of torch's class is, it is not that of what stood in
    assert found == answer
    assert found[5] != "Later"


def test_torch_knows_them_after_tensors_of_another_type():
    code = f"""{ALONE}
class Foreign(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape)
    def __init__(self, inner):
        self.inner = inner
    @classmethod
    def __torch_dispatch__(cls, function, types, arguments, options=None):
        return cls(function(*(each.inner if isinstance(each, cls) else each for each in arguments)))
three = (Foreign(torch.ones(2)) + 2).inner.tolist()
before = waits("torch.distributed.tensor")  # and torch has asked it for its class
group()
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
one = distribute_tensor(torch.arange(4.0), init_device_mesh("cpu", (1,)), [Shard(0)]).requires_grad_()
(one * one).sum().backward()
answer = [three, before, one.grad.to_local().tolist(), type(one.grad).__name__]
"""
    assert fresh(code) == [[3.0, 3.0], True, [0.0, 2.0, 4.0, 6.0], "DTensor"]


def test_a_module_is_sharded_as_ever():
    code = f"""{ALONE}
before = waits("torch.distributed.fsdp")
import transformers.distributed.fsdp as user
group()
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
user.fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)),
                 mp_policy=user.MixedPrecisionPolicy(param_dtype=torch.bfloat16))
model(torch.ones(1, 2)).sum().backward()
from torch.distributed.tensor import DTensor
import torch.distributed.checkpoint.state_dict as states
whole = states.get_model_state_dict(model, options=states.StateDictOptions(full_state_dict=True))
answer = [before, all(isinstance(p.grad, DTensor) for p in model.parameters()), sorted(whole),
          waits("torch.distributed.fsdp"), waits("torch.distributed.checkpoint")]
"""
    assert fresh(code) == [True, True, ["0.bias", "0.weight", "1.bias", "1.weight"], False, False]


def test_styles_of_tensor_parallelism_are_all_there_for_those_who_ask():
    asked = "sorted(styles), len(styles), 'colwise' in styles, 'no such' in styles"
    code = "from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES as styles"
    lean = f"{ALONE}\n{code}\nbefore = waits('transformers.distributed.tensor_parallel')\n"
    end = f"answer = [before, {asked}, type(styles['grouped_gemm']).__name__]"
    real = "import transformers.modeling_utils\nbefore = True\n"
    assert fresh(lean + end) == fresh(f"{real}{code}\n{end}")


def test_one_of_several_processes_has_what_they_use_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fresh(f"{ALONE}\nanswer = type(sys.modules['torch.distributed.tensor']).__name__") == "module"


def test_a_graph_is_exported_as_ever():
    code = f"""{ALONE}
before = waits("torch.export")
found = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
answer = [before, type(found).__name__, found.module()(torch.ones(1, 2)).shape[1]]
"""
    assert fresh(code) == [True, "ExportedProgram", 2]


def test_shapes_without_symbols_are_answered_as_by_the_real_functions():
    code = f"""{ALONE}
from itertools import product
from llamafarm.models.lean import _PLAIN
name = "torch.fx.experimental.symbolic_shapes"
import torch.fx.experimental.symbolic_shapes as shapes
truths, numbers, tuples = [True, False], [0, 1, 7, -1], [(), (1, 2), (1, 3), (1, 2, 3)]
asked = {{name: [(a,) for a in truths] for name in _PLAIN}}
asked["has_guarding_hint"] = asked["is_nested_int"] = asked["guarding_hint_or_throw"] = [(a,) for a in truths + numbers]
asked["sym_and"] = asked["sym_or"] = [a for n in (1, 2, 3) for a in product(truths, repeat=n)]
asked["sym_eq"] = [*product(numbers, repeat=2), *product(tuples, repeat=2)]
asked["expect_true"].append((True, 1))
def answers():
    return [[name, [repr(getattr(shapes, name)(*a)) for a in asked[name]]] for name in sorted(_PLAIN)]
first, before = answers(), waits(name)
try:
    shapes.guard_or_false(torch.ones(1))
except AssertionError as error:  # its own
    said = str(error)
answer = [before, waits(name), first == answers(), "bool" in said, len(first)]
"""
    assert fresh(code) == [True, False, True, True, 11]


def test_a_model_without_memory_needs_no_symbols_and_a_compiler_gets_them():
    code = f"""{ALONE}
with torch.device("meta"):
    embedding = torch.nn.Embedding(8, 4)
    steps = 1.0 / (10000 ** (torch.arange(0, 8, 2, dtype=torch.float) / 8))
before = [waits("sympy"), embedding.weight.shape[0], steps.shape[0], str(steps.device)]
twice = torch.compile(lambda x: x * x.shape[0], dynamic=True, backend="eager")
answer = [before, [twice(torch.ones(n)).sum().item() for n in (3, 5)], waits("sympy")]
"""
    assert fresh(code) == [[True, 8, 4, "meta"], [9.0, 25.0], False]


def test_torch_notes_who_registers_an_operation_as_ever():
    code = """
import torch
from torch._library.simple_registry import singleton
entries = singleton._data
answer = sorted([name, str(getattr(entry.fake_impl, "kernels", [])and [k.source for k in entry.fake_impl.kernels])]
                for name, entry in entries.items())
"""
    lean = f"from llamafarm.models.lean import lean_imports\nwith lean_imports():\n    import torch\n{code}"
    mine, real = (dict(fresh(each)) for each in (lean, code))
    assert len(mine) > 20
    assert {name: real[name] for name in mine} == mine  # without what only waiting modules register
