"""What a run of this fine-tuner costs: the memory of its parts at the peak, operations, disk. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamafarm.api import AdapterSpec, Costs, RunPlan, Workload
from llamafarm.api.launch import world_size
from llamafarm.estimate.adapters import Trained, trained
from llamafarm.estimate.architecture import Architecture, read_architecture
from llamafarm.estimate.arithmetic import (
    OPTIMIZER_BYTES,
    Batches,
    micro_batches,
    packs,
    quantized_bytes,
    training_flops,
)
from llamafarm_tuners.pytorch.activations import FUSED_ARCHITECTURES, Formats, Kept, fused, generic
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.fast.native import library
from llamafarm_tuners.pytorch.frozen import settled
from llamafarm_tuners.pytorch.global_batch import settle_batches
from llamafarm_tuners.pytorch.kernels import attention
from llamafarm_tuners.pytorch.onednn import computes, kernel_bytes
from llamafarm_tuners.pytorch.optim import effective, offloaded
from llamafarm_tuners.pytorch.packs import capacity
from llamafarm_tuners.pytorch.precision import autocast, base_format, quantization, trained_format
from llamafarm_tuners.pytorch.processor import lets_go, room_for_copies
from llamafarm_tuners.pytorch.schedule import happens, plan_sizes

_MIB = 2**20
_WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_BASE = {"cpu": 337 * _MIB, "cuda": 0, "mps": 0}
"""Main memory of the process with torch, transformers, PEFT and accelerate imported; measured on Linux, x86-64."""
_TOGETHER = 49 * _MIB
"""What each of several processes imports besides."""
_BITSANDBYTES = 70 * _MIB
_CONTEXT = 700 * _MIB
"""What CUDA and its libraries take of a GPU besides what PyTorch counts."""
_FRAGMENTED = 0.05
"""Share that PyTorch's allocator reserves and cannot use."""
_UNFILLED = 0.10
"""Share of what is kept that a CPU's allocator holds besides: gaps that nothing of the size at hand fits into."""
_LEFT = 0.7
"""Share of a layer's gaps that stay when what it keeps is given back and computed again; measured once."""
_LOGITS = {"cpu": 32 * _MIB}
_LOGITS_ELSEWHERE = 256 * _MIB
"""A chunk of logits, as in `fast/_head.py`; it is there as logits, probabilities, error, and as products give it."""
_COPIES = 4
_IN_PLACE = 0.25
"""Of that, where compiled kernels compute in 16 bits: this chunk and the one before, of half the size."""
_UNCHUNKED = frozenset({"gemma2", "gemma3_text"})
"""Architectures that do more to logits than one product."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What the terms are worked out from."""

    config: PytorchConfig
    plan: RunPlan
    workload: Workload
    architecture: Architecture
    specs: tuple[AdapterSpec, ...]
    found: Trained
    batches: Batches

    @property
    def on_cpu(self) -> bool:
        return self.plan.device.type == "cpu"

    @property
    def packed(self) -> Mapping[str, Any]:
        """How the base is quantized; empty: not at all."""
        asked = next((spec.quantization for spec in self.specs if spec.quantization), {})
        return quantization(asked, self.config.base_model, self.plan.device)

    @property
    def width(self) -> float:
        """Bytes of a weight of the base that is not quantized."""
        if self.config.base_model.from_scratch is not None:
            return 4.0
        return _WIDTHS[base_format(self.config, self.plan)]

    @property
    def trained_width(self) -> float:
        """Bytes of a weight that is trained, of its gradient, and so of half of AdamW's state."""
        return _WIDTHS[trained_format(self.config.training)]

    @property
    def in_one_row(self) -> bool:
        """Whether rows stand one after the other; else they are padded."""
        window = self.architecture_window
        kernel = attention(self.config, self.plan)
        apart = kernel in (None, "sdpa", "flash_attention_2") and not self.config.training.torch_compile
        return apart and (window is None or window >= self.batches.longest)

    @property
    def architecture_window(self) -> int | None:
        text = self.workload.model_config.get("text_config") or self.workload.model_config
        window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
        return int(window) if window else None

    @property
    def offloaded(self) -> bool:
        """Whether the optimizer is in main memory, and the device has its own."""
        return offloaded(self.config.training, self.plan.device.type)

    @property
    def fused(self) -> bool:
        """Whether decoder layers are computed by `fast/_decoder.py`."""
        known = self.in_one_row and self.architecture.model_type in FUSED_ARCHITECTURES
        return known and self._fuses and not self.found.norms

    @property
    def joined(self) -> bool:
        """Whether layers with adapters are computed by `fast/_adapted.py`."""
        return self._fuses and bool(self.found.adapted) and not self.fused

    @property
    def apart(self) -> bool:
        """Whether adapters are computed on a CPU as PEFT does."""
        return self.on_cpu and bool(self.found.adapted) and not (self.fused or self.joined)

    @property
    def _fuses(self) -> bool:
        plain = all(spec.kind in ("lora", "qlora", "dora") and not spec.changes_base for spec in self.specs)
        exact = autocast(self.config.training, self.plan) == "no" or (self.width < 4.0 and not self.packed)
        return self.on_cpu and plain and exact and self.config.training.fused

    @property
    def dora(self) -> bool:
        """Whether adapters have magnitudes."""
        return any(spec.options.get("use_dora") for spec in self.specs)

    @property
    def tokens(self) -> float:
        """Of the largest micro-batch, padding included."""
        return self.batches.most if self.in_one_row else self.batches.padded

    @property
    def formats(self) -> Formats:
        width = self.width
        mixed = autocast(self.config.training, self.plan) != "no"
        mask = 4.0 if self.on_cpu else 1.0
        return Formats(width, 2.0 if mixed else width, 4.0, mask, library().loaded is not None)

    @property
    def kept(self) -> Kept:
        ranks = float(sum(_rank(spec) for spec in self.specs) * len(self.found.adapted))
        if self.fused:
            return fused(self.architecture, self.found, self.formats, ranks, dora=self.dora)
        return generic(self.architecture, self.found, self.formats, ranks, joined=self.joined)


def estimate(config: PytorchConfig, plan: RunPlan, workload: Workload) -> Costs:
    """Work out the costs of a run.

    Raises:
        ModelError: If the architecture is not known.
    """
    devices = max(1, plan.device.count)
    config = config.model_copy(update={"training": settle_batches(config.training, plan.given, devices)})
    config = settled(config, plan, workload.model_config)
    training = config.training
    architecture = read_architecture(workload.model_config)
    specs = tuple(method.adapter() for method in plan.methods)
    found = trained(architecture, specs)
    longest = training.max_seq_length
    lengths = tuple(min(length, longest) for length in workload.lengths)
    if training.packing:
        batches = packs(lengths, workload.rows, capacity(training), training.batch_size)
        items = batches.count * training.batch_size
    else:
        batches = micro_batches(lengths, workload.rows, training.batch_size)
        items = workload.rows
    run = _Run(config, plan, workload, architecture, specs, found, batches)
    sizes = plan_sizes(items, training, devices)
    own = min(sizes.accumulation, batches.count) * sizes.steps
    memory = {name: value for name, value in _memory(run, own) if value}
    tokens = batches.mean * own * devices
    peak = sum(memory.values())
    return Costs(
        memory=memory,
        beside=0.0 if run.on_cpu else _CONTEXT + _FRAGMENTED * peak,
        flops=_flops(run, tokens) / devices,
        steps=sizes.steps,
        tokens=tokens,
        disk=_disk(run, sizes.steps, sizes.steps_per_epoch),
        trained=found.parameters,
        parameters=architecture.parameters + found.adapters,
        path=_path(run),
        micro_batch=training.batch_size,
        notes=tuple(_notes(run)),
    )


def _trained_embedding(run: _Run) -> int:
    """Parameters of the embedding where the whole base is trained; its moments are in 32 bits at least."""
    architecture = run.architecture
    return architecture.vocabulary * architecture.hidden if run.found.base >= architecture.parameters else 0


def _memory(run: _Run, micro_batches: int) -> Iterator[tuple[str, float]]:
    base = float(_BASE.get(run.plan.device.type, 0))
    beside = (_BITSANDBYTES if run.packed else 0) + (_TOGETHER if world_size() > 1 else 0)
    yield "process", base + (beside if base else 0)
    yield "weights", _weights(run)
    yield "ordered copies", _copies(run)
    adapters, changed = run.found.adapters, run.found.base
    copies = 0 if any(spec.changes_base for spec in run.specs) else changed
    width = run.trained_width
    yield "adapters", width * (adapters + copies)
    yield "gradients", width * run.found.parameters
    optim = effective(run.config.training.optim, run.plan.device.type)
    state = OPTIMIZER_BYTES[optim] * (
        width / 4.0 if optim.startswith("adamw_torch") else 1.0
    )  # kept as the weights are
    whole = (8.0 - state) * _trained_embedding(run) if "8bit" in optim else 0.0
    yield "optimizer", 0.0 if run.offloaded else state * run.found.parameters + whole
    yield "methods", 4.0 * adapters * sum(spec.kept for spec in run.specs)
    yield "activations", _activations(run)
    yield "logits", _logits(run)
    yield "temporary", _temporary(run)
    yield "kernels", _kernels(run, micro_batches)


def _weights(run: _Run) -> float:
    architecture, width = run.architecture, run.width
    if not run.packed:
        whole = width * architecture.parameters
        if not run.fused:
            return whole
        # q, k, v and gate, up are put side by side in one matrix each; of a mapped file the old ones may stay in memory
        return whole + (0.0 if lets_go() or not _mapped(run) else width * _grouped(run))
    rest = architecture.parameters - architecture.linear_parameters
    packed = quantized_bytes(architecture, run.packed) + 4.0 * rest  # what is not packed is made float32 by PEFT
    if run.on_cpu and run.workload.stored_bits == 32:  # the file stays mapped, for what is not packed stands in it
        packed += 4.0 * architecture.linear_parameters
    return packed


def _copies(run: _Run) -> float:
    """Copies of frozen matrices that fused layers and the head multiply with, in the order of oneDNN, if they fit.

    Two of each; in float32 one of each that stays in memory. Others stand in a mapped file, and are let go.
    """
    if not (run.fused or run.joined) or run.packed or not computes(run.plan.device.details, 4.0):
        return 0.0
    architecture = run.architecture
    head = (
        0 if run.found.head or architecture.model_type in _UNCHUNKED else architecture.vocabulary * architecture.hidden
    )
    linears = architecture.linear_parameters
    if run.joined:
        linears = sum(count * linear.parameters for linear, count in run.found.adapted)
    whole, gone = linears + head, 0.0
    if lets_go() and _mapped(run):
        gone = (
            whole - (_grouped(run) if run.fused else 0.0) - (head if architecture.tied else 0)
        )  # an embedding is read in every step
    forward = gone if run.width == 4.0 else whole
    needed = run.width * (whole + forward)
    return needed - run.width * gone if needed <= room_for_copies(run.plan.device.memory_bytes) else 0.0


def _mapped(run: _Run) -> bool:
    """Whether weights are those of the mapped file, in its format."""
    return run.workload.stored_bits == run.width * 8


def _grouped(run: _Run) -> float:
    """Weights of linear layers that fused layers put side by side."""
    names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    linears = run.architecture.linears
    return float(run.architecture.layers * sum(linear.parameters for linear in linears if linear.name in names))


def _activations(run: _Run) -> float:
    kept, layers, tokens = run.kept, run.architecture.layers, run.tokens
    unfilled = 1 + _UNFILLED if run.on_cpu and not run.apart else 1.0
    saved = kept.saved + _scores(run)
    # a CPU's allocator does not fill gaps of the very size that is asked for: what passes leaves one in each layer
    gaps = kept.passing if run.apart else 0.0
    if run.config.training.gradient_checkpointing:
        left = (
            kept.passing if run.on_cpu and (run.fused or run.joined) else _LEFT * gaps
        )  # of each layer, between what is kept of them
        return tokens * unfilled * (layers * (kept.entry + left) + saved)
    return tokens * unfilled * layers * (saved + gaps)


def _scores(run: _Run) -> float:
    """Attention that is written out keeps its scores, before and after the softmax: bytes for each token."""
    eager = attention(run.config, run.plan) == "eager" or run.architecture.model_type == "gemma2"
    return run.architecture.heads * run.batches.longest * (4.0 + run.formats.product) if eager else 0.0


def _logits(run: _Run) -> float:
    architecture = run.architecture
    learned = max(1.0, run.tokens * (1.0 if run.config.training.stage == "pt" else run.workload.learned))
    whole = 4.0 * learned * architecture.vocabulary
    chunk = _LOGITS.get(run.plan.device.type, _LOGITS_ELSEWHERE)
    parts = _COPIES * (
        whole if architecture.model_type in _UNCHUNKED else min(whole, max(chunk, 64.0 * architecture.vocabulary))
    )
    parts *= _IN_PLACE if run.on_cpu and run.formats.product == 2.0 and run.formats.compiled else 1.0
    states = 3.0 * 4.0 * learned * architecture.hidden  # hidden states, those in the products' format, the gradient
    mixed = autocast(run.config.training, run.plan) != "no" and run.width == 4.0
    return parts + states + (2.0 * architecture.vocabulary * architecture.hidden if mixed else 0.0)


def _temporary(run: _Run) -> float:
    """What the backward pass of one layer has at hand, or the optimizer's step: they are not there together."""
    architecture, formats = run.architecture, run.formats
    back = run.tokens * run.kept.back if not run.apart else 0.0
    largest = 4.0 * architecture.vocabulary * architecture.hidden if run.found.head else 0.0
    unpacked = 0.0
    if run.packed:  # one layer's weight at a time, as numbers again; fused ones come in groups, put side by side
        unpacked = formats.product * max(linear.inputs * linear.outputs for linear in architecture.linears)
        unpacked *= 4 if run.fused else 1
    cast = 2.0 * architecture.linear_parameters * run.found.share if formats.product != run.width else 0.0
    return back + largest + unpacked + cast


def _kernels(run: _Run, micro_batches: int) -> float:
    """Compiled products that a CPU's library keeps."""
    if not run.on_cpu or not computes(run.plan.device.details, run.formats.product):
        return 0.0
    alike = len(set(run.workload.lengths)) == 1 or run.batches.count == 1
    return kernel_bytes(micro_batches, alike=alike)


def _flops(run: _Run, tokens: float) -> float:
    lengths = [min(length, run.config.training.max_seq_length) for length in run.workload.lengths]
    attended = sum(length**2 for length in lengths) / sum(lengths) / 2
    return training_flops(
        run.architecture,
        tokens=tokens,
        attended=attended,
        learned=1.0 if run.config.training.stage == "pt" else run.workload.learned,
        adapters=run.found.adapters,
        base_trained=run.found.share,
        head_trained=run.found.head,
        recomputed=run.config.training.gradient_checkpointing,
    )


def _disk(run: _Run, steps: int, per_epoch: int) -> float:
    """The result and its checkpoints: adapters in float32, or the whole model as it is trained."""
    training = run.config.training
    changes = any(spec.changes_base for spec in run.specs)
    one = 4.0 * (run.architecture.parameters if changes else run.found.parameters) + 5 * _MIB
    saved: float = 0
    if happens(training.save_strategy, training.save_steps):
        every = per_epoch if training.save_strategy == "epoch" or training.save_steps < 1 else training.save_steps
        saved = min(steps // every, training.save_total_limit or math.inf)
    best = 1 if run.workload.held_out else 0  # without evaluation it is a second name for the result's files
    return one * (1 + saved + best)


def _path(run: _Run) -> str:
    kinds = "+".join(spec.kind for spec in run.specs)
    bits = "4bit-" if run.packed.get("load_in_4bit") else "8bit-" if run.packed.get("load_in_8bit") else ""
    dropout = "-dropout" if run.found.dropout else ""
    way = ("fused" if run.fused else "one-row") if run.in_one_row else "padded"
    way = f"joined-{way}" if run.joined else way
    again = "-checkpointing" if run.config.training.gradient_checkpointing else ""
    again += "-offload" if run.offloaded else ""
    mixed = autocast(run.config.training, run.plan)
    return f"{bits}{kinds}{dropout} {way}{again} {int(run.width * 8)}bit {mixed}"


def _notes(run: _Run) -> Iterator[str]:
    yield from run.found.notes
    parameters = run.architecture.parameters
    if parameters >= 1e9 and run.width == 4.0 and not run.packed:
        size = 4.0 * parameters / 1e9
        way = (
            "they are trained, and trained weights are kept in float32; method lora leaves the base frozen"
            if any(spec.changes_base for spec in run.specs)
            else "base_model.torch_dtype: bfloat16 halves that, method qlora takes an eighth of it"
        )
        yield f"float32 weights of {parameters / 1e9:.1f} billion parameters are {size:.0f} GB: {way}"
    if run.offloaded:
        # two moments and a copy of the weights in float32
        yield f"the optimizer takes {12.0 * run.found.parameters / 1e9:.1f} GB of main memory for each process"
    if run.plan.device.type == "cuda":
        yield "the figures for GPUs are derived from what the code keeps, and have not been measured on this kind yet"


def _rank(spec: AdapterSpec) -> int:
    rank = spec.options.get("r", 0)
    return int(rank) if isinstance(rank, int) else 0
