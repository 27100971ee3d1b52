"""Trains with torchtune, in its environment: `tune.py WAY FOLDER METHOD`.

Its recipes want a tokenizer of a known model and write the whole model; so this is a loop of its parts in the order of
its recipe for LoRA on one device: model, packed rows, loss, normalization by tokens, fused AdamW. `torchtune` is that
recipe with its defaults (everything in bf16, the adapters too, and gradients recomputed).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from inputs import ACCUMULATION, BATCH, LEARNING_RATE, LONGEST, PACKS, RANK, read_rows
from measured import Clock, say
from safetensors.torch import load_file
from torchtune import training
from torchtune.data import padded_collate_packed, padded_collate_sft
from torchtune.datasets import PackedDataset
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3 import lora_llama3
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.modules.tied_linear import TiedLinear

IGNORED = -100


def build(folder: Path, dtype: torch.dtype, *, recompute: bool) -> Any:
    """The model with new adapters on all linear layers."""
    shape = json.loads((folder / "model" / "config.json").read_text())
    rope: dict[str, Any] = shape.get("rope_parameters") or {}
    torch.manual_seed(1)
    with training.set_default_dtype(dtype):
        model: Any = lora_llama3(
            ["q_proj", "k_proj", "v_proj", "output_proj"],
            apply_lora_to_mlp=True,
            vocab_size=shape["vocab_size"],
            num_layers=shape["num_hidden_layers"],
            num_heads=shape["num_attention_heads"],
            num_kv_heads=shape["num_key_value_heads"],
            embed_dim=shape["hidden_size"],
            intermediate_dim=shape["intermediate_size"],
            max_seq_len=LONGEST,
            norm_eps=shape["rms_norm_eps"],
            rope_base=rope.get("rope_theta") or shape.get("rope_theta") or 10_000,
            lora_rank=RANK,
            lora_alpha=2 * RANK,
        )
    del model.output  # what takes its place is no module
    model.output = TiedLinear(model.tok_embeddings)
    set_trainable_params(model, get_adapter_params(model))
    heads = {"num_heads": shape["num_attention_heads"], "num_kv_heads": shape["num_key_value_heads"]}
    weights = hf_to_tune(load_file(folder / "model" / "model.safetensors"), dim=shape["hidden_size"], **heads)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all("lora" in name for name in missing), missing
    if recompute:
        training.set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    return model.train()


def steps(folder: Path, *, packed: bool) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The micro-batches of each optimizer step."""
    rows = [{"tokens": row.ids, "labels": [IGNORED] * row.prompt + row.ids[row.prompt :]} for row in read_rows(folder)]
    if packed:
        packs = PackedDataset(rows, max_seq_len=LONGEST)
        micro = [padded_collate_packed([packs[at]]) for at in range(len(packs))]
    else:
        micro = [padded_collate_sft(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    each = PACKS if packed else ACCUMULATION
    yield from (micro[at : at + each] for at in range(0, len(micro), each))


def gradient(model: Any, loss_of: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Add a micro-batch's gradient of the loss, summed over its targets, to what is there; the sum."""
    labels = batch.pop("labels")
    targets = (labels != IGNORED).sum()  # as the recipe counts; the first token of a row is never one here
    logits = model(**batch)
    shifted = torch.hstack((labels[..., 1:], torch.full((len(labels), 1), IGNORED)))
    total = loss_of(logits, shifted) * targets
    total.backward()
    found: torch.Tensor = total.detach()
    return found


def main() -> None:
    """Train once over the rows."""
    way, folder = sys.argv[1], Path(sys.argv[2])
    dtype = torch.float32 if way.endswith("fp32") else torch.bfloat16
    model = build(folder, dtype, recompute=way == "torchtune")
    loss_of = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_of.num_output_chunks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    clock, losses = Clock(), []
    for batches in steps(folder, packed="packed" in way):
        clock.start()
        count = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        total = math.fsum(gradient(model, loss_of, batch).item() for batch in batches)
        training.scale_grads(model, torch.tensor(1 / count))
        torch.nn.utils.clip_grad_norm_(trained, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.stop()
        losses.append(total / count)
    say(clock, losses)


if __name__ == "__main__":
    main()
