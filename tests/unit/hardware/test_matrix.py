"""Which precision, kernel and batch each documented configuration gets on each kind of device, and why."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import DeviceSpec, Probe
from llamafarm.core.load import Loaded, load
from llamafarm.core.plan import Planned, make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.errors import LlamaFarmError
from llamafarm_hardware import cuda
from llamafarm_hardware.cpu import Cpu
from llamafarm_hardware.mps import Mps
from llamafarm_hardware.nvidia import Gpu
from llamafarm_hardware.torch_build import TorchBuild
from llamafarm_tuners.pytorch import kernels, precision
from llamafarm_tuners.pytorch.global_batch import settle_batches
from llamafarm_tuners.pytorch.optim import effective

DOCUMENTS = Path(__file__).parents[2] / "documents"
GIB = 2**30
GOOD, OLD = TorchBuild("2.13.0", "12.8", "9.10.2"), TorchBuild("2.13.0", "12.1", "8.9.7")


def nvidia(name: str, capability: tuple[int, int], gib: int, build: TorchBuild = GOOD) -> DeviceSpec:
    return cuda._device([Gpu("0", "GPU-1", name, gib * GIB, capability, "580.65")], build)


DEVICES = {
    "gtx1080": nvidia("GTX 1080", (6, 1), 8),
    "v100": nvidia("V100", (7, 0), 32),
    "t4": nvidia("T4", (7, 5), 15),
    "a100": nvidia("A100", (8, 0), 80),
    "a100-old-stack": nvidia("A100", (8, 0), 80, OLD),
    "rtx4090": nvidia("RTX 4090", (8, 9), 24),
    "h100": nvidia("H100", (9, 0), 80),
    "b200": nvidia("B200", (10, 0), 180),
    "rtx5090": nvidia("RTX 5090", (12, 0), 32),
    "mps": DeviceSpec("mps", "Apple silicon", 1, 16 * GIB, {"bf16": True, "tf32": False, "fp16": False}),
    "old-mps": DeviceSpec("mps", "Apple silicon", 1, 8 * GIB, {"bf16": False, "tf32": False, "fp16": False}),
    "cpu": DeviceSpec("cpu", "a processor", 1, 8 * GIB, {"bf16": True, "tf32": False, "fp16": False}),
}


@dataclass(frozen=True)
class Resolved:
    loaded: Loaded
    planned: Planned

    @property
    def figures(self) -> tuple[str, str, str | None]:
        """Autocast, format of the base, attention kernel."""
        config, plan = self.loaded.tuner_config, self.planned.plan
        return (
            precision.autocast(config.training, plan),
            precision.base_format(config, plan),
            kernels.attention(config, plan),
        )

    @property
    def batch(self) -> tuple[int, int]:
        settled = settle_batches(self.loaded.tuner_config.training, self.planned.plan.given, 1)
        return settled.batch_size, settled.gradient_accumulation_steps

    @property
    def reasons(self) -> dict[str, str]:
        """The last decision about each setting with its reason."""
        return {item.subject: f"{item.value}: {item.reason}" for item in self.planned.plan.decisions}


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Plan a strategy as it would be on a device of that name."""
    (tmp_path / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3, encoding="utf-8")

    def call(where: str, text: str, *sets: str, flash: bool = False) -> Resolved:
        device = DEVICES[where]
        for profile in (cuda.Cuda, Mps, Cpu):
            there = device.type == profile.name or profile is Cpu
            answer = Probe(device if device.type == profile.name else DEVICES["cpu"], "found") if there else None
            monkeypatch.setattr(profile, "probe", lambda self, answer=answer: answer or Probe(None, "not here"))
        find = util.find_spec

        def told(name: str, *rest: Any) -> Any:
            return find("json" if flash else "no_such_module") if name in ("flash_attn", "triton") else find(name)

        monkeypatch.setattr(kernels, "find_spec", told)
        path = tmp_path / "s.yaml"
        path.write_text(text, encoding="utf-8")
        given = ("base_model=builtin:tiny", f"dataset={tmp_path / 'data.jsonl'}", f"output_dir={tmp_path / 'out'}")
        registry = load_registry(())
        loaded = load(Request(str(path), sets=(*given, *sets)), registry)
        return Resolved(loaded, make_plan(loaded, registry))

    return call


def document(name: str, *more: str) -> str:
    return "\n".join([(DOCUMENTS / f"{name}.yaml").read_text(encoding="utf-8"), *more])


def in_config(name: str) -> str:
    body = (DOCUMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    return "fine_tuner:\n  config:\n" + "".join(f"    {line}\n" for line in body.splitlines())


PLAIN = "name: plain\n"


@pytest.mark.parametrize(
    ("where", "figures", "tf32", "generation"),
    [
        ("gtx1080", ("no", "float32", "sdpa"), None, "Pascal"),
        ("v100", ("no", "float32", "sdpa"), None, "Volta"),
        ("t4", ("no", "float32", "sdpa"), None, "Turing"),
        ("a100", ("bf16", "bfloat16", "sdpa"), True, "Ampere"),
        ("a100-old-stack", ("bf16", "bfloat16", "eager"), True, "Ampere"),
        ("rtx4090", ("bf16", "bfloat16", "sdpa"), True, "Ada"),
        ("h100", ("bf16", "bfloat16", "sdpa"), True, "Hopper"),
        ("b200", ("bf16", "bfloat16", "sdpa"), True, "Blackwell"),
        ("rtx5090", ("bf16", "bfloat16", "sdpa"), True, "Blackwell"),
        ("mps", ("no", "float32", "sdpa"), None, None),
        ("cpu", ("no", "float32", "sdpa"), None, None),
    ],
)
def test_what_a_strategy_that_says_nothing_gets(resolve, where, figures, tf32, generation):
    found = resolve(where, PLAIN)
    training = found.loaded.tuner_config.training
    assert found.figures == figures
    assert training.tf32 is tf32
    assert DEVICES[where].details.get("generation") == generation
    assert training.disable_cudnn_sdpa is True, "the safe default"
    assert (training.disable_flash_sdpa, training.torch_compile, training.pure_bf16) == (False, False, False)
    assert precision.trained_format(training) == "float32"
    assert all(item.reason for item in found.planned.plan.decisions)
    assert found.reasons["base_model.attn_implementation"].startswith(str(figures[2]))


@pytest.mark.parametrize(
    ("where", "flash", "figures", "said"),
    [
        ("h100", True, ("bf16", "bfloat16", "flash_attention_2"), ""),
        ("h100", False, ("bf16", "bfloat16", "sdpa"), "the package flash-attn is not installed"),
        ("a100-old-stack", False, ("bf16", "bfloat16", "eager"), "the package flash-attn is not installed"),
        ("t4", True, ("no", "float32", "sdpa"), "T4 is older"),
    ],
)
def test_the_block_for_cuda(resolve, where, flash, figures, said):
    found = resolve(where, document("cuda"), flash=flash)
    training = found.loaded.tuner_config.training
    assert found.figures == figures
    assert (training.batch_size, training.gradient_checkpointing, training.optim) == (8, True, "adamw_8bit")
    assert effective(training.optim, "cuda") == "adamw_8bit"
    assert said in found.reasons["training.use_flash_attention"]
    assert "s.yaml:" in str(found.loaded.origins["components", "fine_tuner", "config", "training", "batch_size"])
    if where == "t4":
        assert found.reasons["training.bf16"] == "off: T4 does not compute in bfloat16"


def test_the_block_for_cuda_says_nothing_elsewhere(resolve):
    found = resolve("cpu", document("cuda"))
    assert found.figures == ("no", "float32", "sdpa")
    assert found.loaded.tuner_config.training.optim == "adamw_torch"


@pytest.mark.parametrize("where", ["mps", "old-mps"])
def test_the_block_for_mps(resolve, where):
    found = resolve(where, document("mps"))
    assert found.figures == ("no", "float32", "sdpa")
    assert found.batch == (2, 8)
    assert "main memory anyway" in found.reasons["training.use_cpu_offload"]


def test_the_block_for_cpu(resolve):
    found = resolve("cpu", document("cpu"))
    assert found.figures == ("no", "float32", "sdpa")
    assert found.batch == (1, 16)
    assert "part of torch itself" in found.reasons["training.use_ipex"]


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("cpu", ["LF-TRAIN-001", "LF-TRAIN-002"]),
        ("mps", ["LF-TRAIN-001", "LF-TRAIN-002"]),
        ("t4", ["LF-TRAIN-002"]),
    ],
)
def test_the_training_block_is_refused_where_its_formats_are_not(resolve, where, ids):
    with pytest.raises(LlamaFarmError) as caught:
        resolve(where, in_config("training"))
    found = [problem for problem in caught.value.problems if problem.id.startswith("LF-TRAIN-00")]
    assert [problem.id for problem in found] == ids
    assert all("s.yaml:" in problem.where and problem.hint for problem in found)


def test_the_training_block_on_a_new_gpu(resolve):
    found = resolve("a100", in_config("training"))
    assert found.figures[0] == "fp16", "fp16 was written; bf16 is only suggested, and switched off in so many words"
    assert found.loaded.tuner_config.training.tf32 is True
    assert found.batch == (4, 4)


@pytest.mark.parametrize(
    ("where", "figures"),
    [("a100", ("fp16", "float32", "sdpa")), ("t4", ("fp16", "float32", "sdpa"))],
)
def test_minimal_memory_on_cuda(resolve, where, figures):
    found = resolve(where, document("minimal-memory"))
    assert found.figures[0] == "fp16"
    assert found.batch == (1, 16)
    assert effective(found.loaded.tuner_config.training.optim, "cuda") == "paged_adamw_8bit"
    settled = precision.quantization(
        found.planned.plan.methods[0].adapter().quantization, found.loaded.tuner_config.base_model, DEVICES[where]
    )
    assert settled["load_in_4bit"] is True
    assert settled["bnb_4bit_compute_dtype"] == ("bfloat16" if where == "a100" else "float16")


def test_minimal_memory_without_a_gpu(resolve):
    with pytest.raises(LlamaFarmError, match=r"s\.yaml:\d+:\d+: training.fp16: .* use training.bf16"):
        resolve("cpu", document("minimal-memory"))
    found = resolve("cpu", document("minimal-memory"), "training.fp16=false")
    assert found.figures == ("no", "float32", "sdpa")
    assert "second memory to page to" in found.reasons["training.optim"]


@pytest.mark.parametrize(
    ("where", "flash", "figures"),
    [
        ("h100", True, ("bf16", "bfloat16", "flash_attention_2")),
        ("rtx4090", True, ("bf16", "bfloat16", "flash_attention_2")),
    ],
)
def test_maximum_performance(resolve, where, flash, figures):
    found = resolve(where, document("maximum-performance"), flash=flash)
    assert found.figures == figures
    assert found.batch == (16, 1)
    assert found.loaded.tuner_config.training.tf32 is True


def test_maximum_performance_that_cannot_be_is_refused_part_by_part(resolve):
    with pytest.raises(LlamaFarmError) as caught:
        resolve("cpu", document("maximum-performance"))
    assert sorted(problem.id for problem in caught.value.problems) == ["LF-TRAIN-002", "LF-TRAIN-006"]
    with pytest.raises(LlamaFarmError, match="pip install flash-attn"):
        resolve("h100", document("maximum-performance"), flash=False)


@pytest.mark.parametrize(("where", "dtype"), [("cpu", "float32"), ("a100", "bfloat16"), ("t4", "float16")])
def test_the_model_block_gives_way_to_the_device_and_to_autocast(resolve, where, dtype):
    found = resolve(where, document("model"))
    assert found.figures[1] == dtype
    assert "whole model is on one device" in found.reasons["base_model.device_map"]
    if dtype != "float16":
        assert found.reasons["base_model.torch_dtype"].startswith(dtype)


NAMED = {
    "training_cuda_consumer": ("rtx4090", ("bf16", "bfloat16", "sdpa"), (1, 16)),
    "training_cuda_datacenter": ("h100", ("bf16", "bfloat16", "flash_attention_2"), (8, 2)),
    "training_mps_apple": ("mps", ("no", "float32", "sdpa"), (2, 8)),
    "training_cpu_only": ("cpu", ("no", "float32", "sdpa"), (1, 16)),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_named_hardware_strategies(resolve, name):
    where, figures, batch = NAMED[name]
    preset = (Path(__file__).parents[3] / f"strategies/{name}.yaml").read_text(encoding="utf-8")
    found = resolve(where, preset, flash=True)
    assert found.figures == figures
    assert found.batch == batch
    if where != "cpu":
        with pytest.raises(LlamaFarmError, match="LF-HARDWARE-001"):
            resolve("cpu", preset, flash=True)


STABILITY = {
    "stable": ("eager", True, False),
    "fa2": ("flash_attention_2", False, False),
    "fa2-compile": ("flash_attention_2", False, True),
    "legacy": ("sdpa", False, False),
}


@pytest.mark.parametrize("name", STABILITY)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_presets_set_the_three_switches_for_every_method(resolve, name, method):
    found = resolve("h100", PLAIN, f"defaults.stability={name}", f"method={method}", flash=True)
    config = found.loaded.tuner_config
    kernel, cudnn, compiled = STABILITY[name]
    assert config.base_model.attn_implementation == found.figures[2] == kernel
    assert (config.training.disable_cudnn_sdpa, config.training.torch_compile) == (cudnn, compiled)


def test_a_preset_named_in_the_file_gives_way_to_what_stands_there(resolve):
    text = "defaults: {stability: legacy}\nfine_tuner: {config: {training: {disable_cudnn_sdpa: true}}}\n"
    config = resolve("a100-old-stack", text).loaded.tuner_config
    assert config.base_model.attn_implementation == "sdpa", "a fragment is stronger than the profile"
    assert config.training.disable_cudnn_sdpa is True


def test_an_unknown_preset_names_those_there_are(resolve, monkeypatch):
    with pytest.raises(LlamaFarmError, match="known: fa2, fa2-compile, legacy, stable"):
        resolve("cpu", PLAIN, "defaults.stability=zzz")
    monkeypatch.setenv("LLAMAFARM_DEFAULTS__STABILITY", "stabel")
    with pytest.raises(LlamaFarmError, match="did you mean 'stable'"):
        resolve("cpu", PLAIN)


def test_flash_attention_in_fp32_is_refused(resolve):
    sets = ("base_model.attn_implementation=flash_attention_2", "training.bf16=false")
    with pytest.raises(LlamaFarmError, match="FlashAttention 2 computes in 16 bits only") as caught:
        resolve("h100", PLAIN, *sets, flash=True)
    assert [problem.id for problem in caught.value.problems] == ["LF-TRAIN-032"]
    assert resolve("h100", PLAIN, *sets, "base_model.torch_dtype=bfloat16", flash=True).figures[1] == "bfloat16"


def test_flex_attention_trains_on_cuda_alone(resolve):
    asked = "base_model.attn_implementation=flex_attention"
    assert resolve("h100", PLAIN, asked).figures[2] == "flex_attention"
    with pytest.raises(LlamaFarmError, match=r"flex_attention has no backward pass on cpu.*LF-TRAIN-033"):
        resolve("cpu", PLAIN, asked)


@pytest.mark.parametrize("name", ["kernels-community/flash-attn2", "flash_attention_3", "user/repo", "paged|sdpa"])
def test_kernels_of_the_hub_are_refused(resolve, name):
    with pytest.raises(LlamaFarmError, match="attn_implementation must be 'auto', 'eager', 'sdpa'"):
        resolve("h100", PLAIN, f"base_model.attn_implementation='{name}'")


def test_compiling_needs_what_compiles(resolve, monkeypatch):
    with pytest.raises(LlamaFarmError, match=r"needs the package triton.*LF-TRAIN-034"):
        resolve("h100", PLAIN, "training.torch_compile=true")
    monkeypatch.setattr(kernels, "cpp_compiler", lambda: None)
    with pytest.raises(LlamaFarmError, match=r"install g\+\+.*LF-TRAIN-034"):
        resolve("cpu", PLAIN, "training.enable_torch_compile=true")
    assert resolve("cpu", PLAIN, "training.torch_compile=true", "training.torch_compile_backend=eager")


def test_contradictions_name_both_places(resolve):
    text = (
        "fine_tuner:\n  config:\n    base_model:\n      torch_dtype: float16\n      attn_implementation: eager\n"
        "    training:\n      fp16: true\n      bf16: true\n      use_flash_attention: true\n"
    )
    with pytest.raises(LlamaFarmError) as caught:
        resolve("h100", text)
    found = {problem.id: f"{problem.where} {problem.message}" for problem in caught.value.problems}
    assert "s.yaml:7:13" in found["LF-TRAIN-003"]
    assert "s.yaml:8:13" in found["LF-TRAIN-003"]
    assert "s.yaml:5:28" in found["LF-TRAIN-005"]
    assert "s.yaml:9:28" in found["LF-TRAIN-005"]
    with pytest.raises(LlamaFarmError) as caught:
        resolve("h100", text, "training.fp16=false", "training.use_flash_attention=false")
    (problem,) = caught.value.problems
    assert problem.id == "LF-TRAIN-030"
    assert "s.yaml:4:20" in problem.where
    assert "s.yaml:8:13" in problem.message


def test_pure_bf16_is_one_format_for_everything(resolve):
    found = resolve("h100", PLAIN, "training.pure_bf16=true", "method=full")
    assert found.figures[:2] == ("no", "bfloat16")
    assert precision.trained_format(found.loaded.tuner_config.training) == "bfloat16"
    assert found.reasons["training.bf16"].startswith("off")
    for other, message in (
        ("training.fp16=true", "training.fp16 at --set"),
        ("base_model.torch_dtype=float32", "base_model.torch_dtype at --set"),
        ("method=qlora", "packed weights"),
    ):
        with pytest.raises(LlamaFarmError, match=message) as caught:
            resolve("h100", PLAIN, "training.pure_bf16=true", other)
        assert "LF-TRAIN-031" in {problem.id for problem in caught.value.problems}
    with pytest.raises(LlamaFarmError, match="LF-TRAIN-004"):
        resolve("t4", PLAIN, "training.pure_bf16=true")


def test_two_widths_name_both_places(resolve):
    text = "fine_tuner:\n  config:\n    base_model:\n      load_in_8bit: true\n    method:\n      type: qlora\n"
    with pytest.raises(LlamaFarmError) as caught:
        resolve("cpu", text)
    (problem,) = caught.value.problems
    assert problem.id == "LF-TRAIN-012"
    assert "s.yaml:6:7" in problem.where
    assert "s.yaml:4:21" in problem.message


def test_defaults_that_are_no_mapping_are_refused_or_replaced(resolve):
    with pytest.raises(LlamaFarmError, match="defaults must be a mapping"):
        resolve("cpu", "defaults: 5\n")
    assert resolve("cpu", "defaults: 5\n", "defaults.stability=stable").figures[2] == "eager"
