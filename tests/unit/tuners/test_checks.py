from __future__ import annotations

from importlib import util
from typing import Any

import pytest

from llamafarm.api import Decision, DeviceSpec
from llamafarm.errors import NetworkError, Problem
from llamafarm.testing.fresh import heavy_after
from llamafarm_methods.bridged import Loha, PrefixTuning, PromptTuning
from llamafarm_methods.dora import Dora
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora
from llamafarm_tuners.pytorch import checks, kernels, precision

CUDA = DeviceSpec("cuda", "NVIDIA X", details={"bf16": True})
OLD_CUDA = DeviceSpec("cuda", "NVIDIA T4", details={"bf16": False})
MPS = DeviceSpec("mps", "Apple M")
FULL, QLORA = Full(Full.Config()), Qlora(Qlora.Config())


def training(**options: Any) -> dict[str, Any]:
    return {"training": options}


def base(**options: Any) -> dict[str, Any]:
    return {"base_model": options}


def findings(made) -> tuple[dict[str, Problem], dict[str, Decision]]:
    found = list(checks.check(*made))
    problems = {item.id: item for item in found if isinstance(item, Problem)}
    return problems, {item.subject: item for item in found if isinstance(item, Decision)}


@pytest.fixture
def without(monkeypatch):
    """Make packages look absent."""

    def hide(*packages: str) -> None:
        find = util.find_spec

        def absent(name: str, *rest: Any) -> Any:
            return None if name in packages else find(name, *rest)

        for module in (checks, kernels):
            monkeypatch.setattr(module, "find_spec", absent)

    return hide


def test_the_defaults_need_no_word(make):
    assert findings(make()) == ({}, {})


def test_a_template_that_nobody_knows_is_refused_before_anything_is_loaded(make):
    problems, _ = findings(make(base(template="lama3"), ("base_model.template",)))
    problem = problems["LF-TEMPLATE-030"]
    assert (problem.where, problem.hint) == ("strategy.yaml:base_model.template", "did you mean 'llama3'?")
    assert findings(make(base(template="Phi-3"))) == ({}, {})


REFUSED_IF_GIVEN = [
    ("training.fp16", training(fp16=True), None, "LF-TRAIN-001"),
    ("training.fp16", training(fp16=True), MPS, "LF-TRAIN-001"),
    ("training.tf32", training(tf32=True), None, "LF-TRAIN-002"),
    ("training.bf16", training(bf16=True), OLD_CUDA, "LF-TRAIN-004"),
    ("training.use_flash_attention", training(use_flash_attention=True), None, "LF-TRAIN-006"),
    ("base_model.attn_implementation", base(attn_implementation="flash_attention_2"), MPS, "LF-TRAIN-006"),
    ("training.use_cpu_offload", training(use_cpu_offload=True, optim="adamw_8bit"), CUDA, "LF-TRAIN-160"),
    ("training.use_cpu_offload", training(use_cpu_offload=True, optim="paged_adamw_32bit"), CUDA, "LF-TRAIN-160"),
    ("training.use_liger_kernel", training(use_liger_kernel=True), None, "LF-TRAIN-120"),
    ("training.activation_offloading", training(activation_offloading=True), MPS, "LF-TRAIN-121"),
    (
        "training.load_best_model_at_end",
        training(load_best_model_at_end=True, eval_strategy="no"),
        None,
        "LF-TRAIN-011",
    ),
    (
        "training.early_stopping",
        training(early_stopping=True, eval_strategy="steps", eval_steps=999_999),
        None,
        "LF-TRAIN-011",
    ),
]


@pytest.mark.parametrize(("path", "options", "device", "id_"), REFUSED_IF_GIVEN)
def test_what_cannot_work_is_refused_if_somebody_wrote_it_and_left_out_with_a_reason_otherwise(
    make, path, options, device, id_
):
    arguments = {"device": device} if device else {}
    problems, decisions = findings(make(options, (path,), **arguments))
    assert problems[id_].where == f"strategy.yaml:{path}"
    assert problems[id_].hint
    assert path not in decisions
    problems, decisions = findings(make(options, **arguments))
    assert problems == {}
    assert decisions[path].value == "off"
    assert decisions[path].reason


def test_liger_on_a_gpu(make, without):
    options, path = training(use_liger_kernel=True), "training.use_liger_kernel"
    without("liger_kernel")
    problem = findings(make(options, (path,), CUDA))[0]["LF-PLUGIN-080"]
    assert (problem.where, problem.hint) == (f"strategy.yaml:{path}", "pip install 'llamafarm[liger]'")


def test_liger_and_compiling_replace_the_same(make, monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    options, path = training(use_liger_kernel=True, torch_compile=True), "training.use_liger_kernel"
    assert findings(make(options, (path,), CUDA))[0]["LF-TRAIN-122"].where == f"strategy.yaml:{path}"
    assert findings(make(training(use_liger_kernel=True), (path,), CUDA))[0] == {}


def test_a_base_in_bf16_needs_a_device_that_computes_in_it(make):
    options, path = base(torch_dtype="bfloat16"), "base_model.torch_dtype"
    problem = findings(make(options, (path,), OLD_CUDA))[0]["LF-TRAIN-004"]
    assert problem.where == f"strategy.yaml:{path}"
    problems, decisions = findings(make(options, (), OLD_CUDA))
    assert problems == {}
    assert decisions[path].value == "float32"
    assert precision.base_format(*make(options, (), OLD_CUDA)) == "float32"


def test_bf16_works_on_a_cpu(make):
    assert findings(make(training(bf16=True), ("training.bf16",))) == ({}, {})


def test_two_16_bit_formats(make):
    both = training(fp16=True, bf16=True)
    assert "LF-TRAIN-003" in findings(make(both, ("training.fp16", "training.bf16"), CUDA))[0]
    for given, loser in (
        (("training.fp16",), "training.bf16"),
        (("training.bf16",), "training.fp16"),
        ((), "training.fp16"),
    ):
        problems, decisions = findings(make(both, given, CUDA))
        assert problems == {}
        assert decisions[loser].value == "off"
        config, plan = make(both, given, CUDA)
        assert precision.autocast(config.training, plan) == {"training.bf16": "fp16", "training.fp16": "bf16"}[loser]


def test_flash_attention_needs_its_package(make, without):
    options = training(use_flash_attention=True)
    without("flash_attn")
    problem = findings(make(options, ("training.use_flash_attention",), CUDA))[0]["LF-PLUGIN-021"]
    assert "pip install flash-attn" in problem.hint
    assert kernels.attention(*make(options, (), CUDA)) is None


def test_two_attention_kernels_are_refused(make):
    options = training(use_flash_attention=True) | base(attn_implementation="eager")
    given = ("base_model.attn_implementation", "training.use_flash_attention")
    assert "LF-TRAIN-005" in findings(make(options, given, CUDA))[0]
    assert "LF-TRAIN-005" not in findings(make(options, given[1:], CUDA))[0]


@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_8_bit_optimizers_need_bitsandbytes(make, without, optim):
    assert findings(make(training(optim=optim), (), CUDA)) == ({}, {})
    without("bitsandbytes")
    assert "pip install 'llamafarm[qlora]'" in findings(make(training(optim=optim), (), CUDA))[0]["LF-PLUGIN-023"].hint


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_moments_in_blocks_do_not_grow(make, optim):
    growing = Lora(Lora.Config(ranks=(4, 8)))
    assert "LF-TRAIN-075" in findings(make(training(optim=optim), method=growing))[0]
    assert "LF-TRAIN-075" not in findings(make(training(optim=optim)))[0]
    assert findings(make(method=growing))[0] == {}
    compiled = findings(make(training(torch_compile=True), method=growing))[0]
    assert "LF-STRATEGY-053" in compiled


def test_what_is_in_main_memory_does_not_grow(make):
    growing, offload = Lora(Lora.Config(ranks=(4, 8))), training(use_cpu_offload=True)
    assert "LF-TRAIN-161" in findings(make(offload, (), CUDA, method=growing))[0]
    assert findings(make(offload, method=growing))[0] == {}, "on a CPU all is there"


def test_an_optimizer_is_offloaded_where_it_has_a_state_and_there_is_another_memory(make):
    path, offload = "training.use_cpu_offload", {"use_cpu_offload": True}
    assert findings(make(training(**offload), (path,), CUDA)) == ({}, {})
    assert findings(make(training(**offload, optim="adamw_torch_fused"), (path,), CUDA)) == ({}, {})
    assert "no state" in findings(make(training(**offload, optim="sgd"), (path,), CUDA))[1][path].reason
    for made in (make(training(**offload), (path,)), make(training(**offload), (path,), MPS)):
        assert "main memory anyway" in findings(made)[1][path].reason


@pytest.mark.parametrize(("optim", "used"), [("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw_torch")])
def test_nothing_is_paged_without_a_gpu(make, optim, used):
    problems, decisions = findings(make(training(optim=optim)))
    assert problems == {}
    assert decisions["training.optim"].value == used


@pytest.mark.parametrize(("options", "method"), [({}, QLORA), (base(load_in_4bit=True), None)])
def test_quantized_bases_need_bitsandbytes(make, without, options, method):
    assert findings(make(options, method=method))[0] == {}
    without("bitsandbytes")
    assert "LF-PLUGIN-023" in findings(make(options, method=method))[0]


def test_a_quantized_base_has_one_width_and_is_not_trained(make):
    assert "LF-TRAIN-012" in findings(make(base(load_in_4bit=True, load_in_8bit=True)))[0]
    assert "LF-TRAIN-012" in findings(make(base(load_in_8bit=True), method=QLORA))[0]
    assert "LF-TRAIN-007" in findings(make(base(load_in_4bit=True), method=FULL))[0]


@pytest.mark.parametrize(
    ("asked", "device", "settled"),
    [
        ("auto", None, "float32"),
        ("float16", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("auto", CUDA, "bfloat16"),
    ],
)
def test_the_compute_format_suits_the_device(make, asked, device, settled):
    method = Qlora(Qlora.Config(quantization={"bnb_4bit_compute_dtype": asked}))
    config, plan = make({}, device=device or DeviceSpec("cpu", "a CPU"), method=method)
    decided = findings((config, plan))[1]
    assert ("quantization.bnb_4bit_compute_dtype" in decided) == (asked != settled)
    options = precision.quantization(method.adapter().quantization, config.base_model, plan.device)
    assert options["bnb_4bit_compute_dtype"] == settled


def test_an_adapter_on_a_random_base_is_refused(make):
    scratch = base(from_scratch={"architecture": {"model_type": "llama"}})
    assert "LF-TRAIN-008" in findings(make(scratch))[0]
    assert findings(make(scratch, method=FULL))[0] == {}


@pytest.mark.parametrize(
    ("asked", "device", "method", "expected"),
    [
        ("auto", "cpu", None, "float32"),
        ("float16", "cpu", None, "float32"),
        ("bfloat16", "cpu", None, "bfloat16"),
        ("float16", "cuda", None, "bfloat16"),  # autocast's format decides
        ("auto", "cuda", None, "bfloat16"),
        ("bfloat16", "cuda", FULL, "float32"),
    ],
)
def test_what_the_base_is_loaded_in(make, asked, device, method, expected):
    config, plan = make(base(torch_dtype=asked) | training(bf16=True), device=DeviceSpec(device, device), method=method)
    assert precision.base_format(config, plan) == expected
    said = "base_model.torch_dtype" in findings((config, plan))[1]
    assert said == (asked not in ("auto", expected))


def test_unknown_and_unmeasured_metrics_are_refused(make):
    problem = findings(make(training(metric_for_best_model="eval_los")))[0]["LF-TRAIN-013"]
    assert problem.hint == "did you mean 'eval_loss'?"
    assert "LF-TRAIN-014" in findings(make(training(metric_for_best_model="token_accuracy")))[0]
    measured = training(metric_for_best_model="token_accuracy", compute_metrics=True)
    assert findings(make(measured))[0] == {}


def test_tensorboard_needs_its_package(make, without):
    options = training(report_to=("tensorboard",))
    assert findings(make(options, ("training.report_to",))) == ({}, {})
    without("tensorboard")
    assert "LF-PLUGIN-022" in findings(make(options, ("training.report_to.0",)))[0]
    assert findings(make(options))[1]["training.report_to"].value == "off"


def test_uploading_needs_a_place_and_a_network(make, monkeypatch):
    monkeypatch.setattr(checks, "is_offline", lambda: False)
    assert "LF-TRAIN-015" in findings(make(training(push_to_hub=True)))[0]
    assert "training.hub_strategy" in findings(make(training(push_to_hub=True, hub_model_id="a/b")))[1]
    monkeypatch.setattr(checks, "is_offline", lambda: True)
    with pytest.raises(NetworkError, match="LF-NET-003"):
        findings(make(training(push_to_hub=True, hub_model_id="a/b")))


@pytest.mark.parametrize("method", [Lora(Lora.Config()), FULL])
def test_an_adapter_is_no_base_to_start_from(make, tmp_path, method):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    problems, _ = findings(make(base(huggingface_id=str(tmp_path)), ("base_model.huggingface_id",), method=method))
    assert "--to merged" in problems["LF-MODEL-223"].hint


def test_a_hub_model_that_is_not_cached_is_refused_offline(make, tmp_path):
    with pytest.raises(NetworkError, match="LF-NET-001"):
        findings(make(base(huggingface_id="nobody/nothing", cache_dir=str(tmp_path))))


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("training.num_epochs", training(max_steps=5)),
        ("training.warmup_ratio", training(warmup_steps=5)),
        ("training.warmup_ratio", training(lr_scheduler_type="constant")),
        ("training.warmup_steps", training(lr_scheduler_type="constant")),
        ("training.warmup_steps", training(warmup_steps=0)),
        ("training.hub_model_id", training(hub_model_id="me/mine")),
        ("training.save_total_limit", training(save_strategy="no")),
        ("base_model.revision", base(huggingface_id="builtin:tiny", revision="main")),
        ("training.eval_steps", training(eval_strategy="epoch")),
        ("training.save_steps", training(save_strategy="no")),
        ("training.eval_accumulation_steps", training(eval_accumulation_steps=4)),
        ("training.early_stopping_patience", training()),
        ("training.use_ipex", training(use_ipex=True)),
        ("training.torch_compile_backend", training(torch_compile_backend="eager")),
        ("training.dataloader_num_workers", training(dataloader_num_workers=4)),
        ("training.dataloader_pin_memory", training()),
        ("training.heartbeat_timeout", training(heartbeat_timeout=5)),
        ("training.length_column_name", training(group_by_length=True)),
        ("training.hub_strategy", training()),
        ("training.adam_beta1", training(optim="sgd")),
        ("evaluation.max_samples", {}),
        ("base_model.device_map", base(device_map="auto")),
        ("training.use_cpu_offload", training(use_cpu_offload=True)),
    ],
)
def test_settings_without_effect_are_explained(make, path, options):
    problems, decisions = findings(make(options, (path,)))
    assert problems == {}
    assert decisions[path].reason


def test_no_warm_up_steps_beside_a_ratio_is_what_transformers_means_by_it(make):
    written = ("training.warmup_steps", "training.warmup_ratio")
    assert findings(make(training(warmup_steps=0, warmup_ratio=0.1), written)) == ({}, {})
    assert findings(make(training(warmup_steps=0, warmup_ratio=0.0), written[:1])) == ({}, {})


def test_checking_imports_nothing_heavy():
    code = (
        "from pathlib import Path\n"
        "from llamafarm.api import DeviceSpec, RunPlan\n"
        "from llamafarm_methods.hooks import Qlora\n"
        "from llamafarm_tuners.hooks import PytorchTuner as T\n"
        "method = Qlora(Qlora.Config())\n"
        "plan = RunPlan('x', (method,), DeviceSpec('cpu', ''), Path('o'), (), {})\n"
        "list(T(T.Config()).check(plan))"
    )
    assert heavy_after(code) == set()


@pytest.mark.parametrize(
    ("method", "setting", "reason"),
    [
        (PromptTuning, "packing", "only the first row of a pack"),
        (PrefixTuning, "packing", "only the first row of a pack"),
        (PrefixTuning, "gradient_checkpointing", "recomputed layers do not find"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_method_and_a_setting_that_exclude_each_other(make, method, setting, reason, given):
    path = f"training.{setting}"
    problems, _ = findings(make(training(**{setting: True}), (path,) if given else (), method=method(method.Config())))
    assert reason in problems["LF-STRATEGY-053"].message
    assert problems["LF-STRATEGY-053"].hint == f"set {path}: false"
    assert problems["LF-STRATEGY-053"].where == (f"strategy.yaml:{path}" if given else "")
    assert findings(make(training(**{setting: False}), method=method(method.Config())))[0] == {}


@pytest.mark.parametrize(
    ("method", "width", "refused"),
    [
        (Loha(Loha.Config()), 4, True),
        (Dora(Dora.Config()), 8, True),
        (Dora(Dora.Config()), 4, False),
        (Lora(Lora.Config(init_lora_weights="pissa")), 4, True),
        (Lora(Lora.Config()), 8, False),
        (PromptTuning(PromptTuning.Config()), 8, False),
    ],
)
def test_a_method_on_a_base_of_a_width_that_it_cannot_stand_on(make, method, width, refused):
    pytest.importorskip("bitsandbytes")
    problems, _ = findings(make(base(**{f"load_in_{width}bit": True}), method=method))
    assert set(problems) == ({"LF-STRATEGY-054"} if refused else set())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Lora(Lora.Config()), set()),
        (PromptTuning(PromptTuning.Config()), set()),
        (FULL, {"LF-TRAIN-007"}),
        (QLORA, {"LF-STRATEGY-055"}),
        (Dora(Dora.Config()), {"LF-STRATEGY-054"}),
        (Loha(Loha.Config()), {"LF-STRATEGY-054"}),
    ],
)
def test_a_base_that_comes_quantized(make, method, expected, tmp_path):
    pytest.importorskip("bitsandbytes")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}', encoding="utf-8")
    problems, _ = findings(make(base(huggingface_id=str(tmp_path)), method=method))
    library = set() if util.find_spec("gptqmodel") and util.find_spec("optimum") else {"LF-PLUGIN-050"}
    assert set(problems) == expected | library
