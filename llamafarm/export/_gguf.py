"""GGUF through the `gguf` library, for architectures that transformers reads back; llama.cpp's converter for others.

Names of tensors are the library's own map. The one change of values is llama's: its rotary embedding pairs neighbours
where transformers pairs halves, so the rows of q and k are permuted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from llamafarm.errors import ModelError
from llamafarm.export import _gguf_vocabulary, _merge
from llamafarm.export.report import Check
from llamafarm.export.request import ExportRequest
from llamafarm.models.serving import GGUF_ARCHITECTURES

_FILE_TYPES: Final = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_TYPES: Final = {number: name for name, number in _FILE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Gguf:
    """One file with weights, tokenizer and chat template."""

    name: str
    file: str
    llama_cpp: Path | None = None
    readable: bool = True

    def write(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write the file.

        Raises:
            ModelError: If the architecture, its positions or the tokenizer cannot be written.
        """
        if self.llama_cpp is not None:
            _convert(model, tokenizer, folder / self.file, self.name, self.llama_cpp)
        else:
            _write(model, tokenizer, folder / self.file, self.name)

    def round_off(self, model: Any) -> None:
        """Give matrices the values that the file's blocks hold; vectors stay in float32."""
        import gguf

        for parameter in model.parameters():
            kind = _kind(parameter, self.name)
            if kind == "f32":
                continue
            type_ = gguf.GGMLQuantizationType[kind.upper()]
            packed = gguf.quants.quantize(parameter.data.cpu().numpy(), type_)
            values = gguf.quants.dequantize(packed, type_)
            parameter.data = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(parameter.device)

    def tokenizer_checks(self, folder: Path, tokenizer: Any, examples: Sequence[Any]) -> list[Check]:
        """Whether the file holds the tokenizer of training."""
        return _gguf_vocabulary.checks(folder / self.file, tokenizer)


def planned(request: ExportRequest, model_type: str) -> Gguf:
    """The file that a request asks for.

    Raises:
        ModelError: If the library is missing.
    """
    require_library()
    readable = model_type in GGUF_ARCHITECTURES
    return Gguf(request.gguf_type, f"{request.served_name}.{request.gguf_type}.gguf", request.llama_cpp, readable)


def require_library() -> None:
    """Check that GGUF can be read and written.

    Raises:
        ModelError: If the library is missing.
    """
    if find_spec("gguf") is None:
        hint = "pip install 'llamafarm[gguf]', or use --to merged"
        raise ModelError.of("LF-MODEL-120", "GGUF needs the library gguf", hint=hint)


def written(file: Path) -> Gguf:
    """The file as it was written.

    Raises:
        ModelError: If the library is missing.
    """
    require_library()
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("general.file_type")
    return Gguf(_TYPES.get(int(field.contents()), "f16") if field else "f16", file.name)


def _kind(tensor: Any, asked: str) -> str:
    """What a tensor is stored as: vectors in float32; blocks of q8_0 are 32 wide, other widths fall back to f16."""
    if tensor.ndim < 2:
        return "f32"
    return "f16" if asked == "q8_0" and tensor.shape[-1] % 32 else asked


def _write(model: Any, tokenizer: Any, file: Path, kind: str) -> None:
    import gguf

    config = model.config
    architecture = GGUF_ARCHITECTURES[config.model_type]
    _require_plain_positions(config)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(file.name.partition(".")[0])
    writer.add_file_type(_FILE_TYPES[kind])
    _add_shape(writer, config)
    _gguf_vocabulary.add(writer, tokenizer, model.get_input_embeddings().weight.shape[0])
    for name, tensor in _tensors(model, architecture):
        stored = _kind(tensor, kind)
        values = np.ascontiguousarray(tensor.float().cpu().numpy())
        type_ = gguf.GGMLQuantizationType[stored.upper()]
        data = values if stored == "f32" else gguf.quants.quantize(values, type_)
        writer.add_tensor(name, data, raw_dtype=None if stored in ("f32", "f16") else type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_positions(config).get("rope_theta", 10000.0)))
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    import gguf

    config = model.config
    names = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(names[architecture], config.num_hidden_layers)
    tied = getattr(config, "tie_word_embeddings", False)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        target = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError.of(
                "LF-MODEL-113", f"GGUF has no name for the tensor {name}", hint="give --llama-cpp FOLDER"
            )
        heads = _heads(name, config) if architecture == "llama" else 0
        yield target, _neighbours(tensor, heads) if heads else tensor


def _heads(name: str, config: Any) -> int:
    """The heads of a q or k projection, else 0."""
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def _neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (two halves) to (pairs of neighbours)."""
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _positions(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _require_plain_positions(config: Any) -> None:
    scaled = _positions(config).get("rope_type", "default")
    partial = float(_positions(config).get("partial_rotary_factor", 1.0) or 1.0)
    if scaled != "default" or partial != 1.0:
        what = f"rope_type {scaled!r}" if scaled != "default" else f"a partial rotary factor of {partial:g}"
        hint = "give --llama-cpp FOLDER (its convert_hf_to_gguf.py is used)"
        raise ModelError.of("LF-MODEL-113", f"GGUF with {what} is not written here", hint=hint)


def converter(llama_cpp: Path) -> Path:
    """llama.cpp's converter in a checkout, or the script itself.

    Raises:
        ModelError: If it is not there.
    """
    script = llama_cpp / "convert_hf_to_gguf.py" if llama_cpp.is_dir() else llama_cpp
    if not script.is_file():
        raise ModelError.of(
            "LF-MODEL-115", f"no convert_hf_to_gguf.py in {llama_cpp}", hint="give the folder of a llama.cpp checkout"
        )
    return script


def _convert(model: Any, tokenizer: Any, file: Path, kind: str, llama_cpp: Path) -> None:
    script = converter(llama_cpp)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=file.parent) as folder:
        _merge.write(model, tokenizer, Path(folder), max_shard_size="5GB")
        command = [sys.executable, str(script), folder, "--outfile", str(file), "--outtype", kind]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # the user's script
    if ended.returncode or not file.is_file():
        last = (ended.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        raise ModelError.of("LF-MODEL-115", f"{script.name} failed: {last[:300]}", where=str(script))
