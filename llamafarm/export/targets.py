"""What a server needs besides weights, and the commands that start it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafarm.export.modelfile import Modelfile, derive
from llamafarm.export.request import ExportRequest
from llamafarm.models.adapter_config import read_adapter_config
from llamafarm.models.locate import Located
from llamafarm.models.record import read_methods, read_quantization
from llamafarm.models.serving import highest_rank, vllm_rank

_LARGE = 0.5


def commands(request: ExportRequest, located: Located, base: str) -> list[str]:
    """What to run next."""
    folder = shlex.quote(str(request.output))
    name = shlex.quote(request.served_name)
    if request.to == "vllm" and request.keep_adapter:
        rank = vllm_rank(highest_rank(_options(located)))
        lora = f"--enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}"
        template = (located.folder or Path()) / "chat_template.jinja"
        chat = f" --chat-template {folder}/chat_template.jinja" if template.is_file() else ""
        return [f"vllm serve {shlex.quote(_options(located).get('base_model_name_or_path') or base)} {lora}{chat}"]
    if request.to == "vllm":
        return [f"vllm serve {folder} --served-model-name {name}"]
    if request.to == "ollama":
        return [f"ollama create {name} -f {folder}/Modelfile", f"ollama run {name}"]
    if request.to == "gguf":
        return [f"llama-server -m {folder}/{name}.{request.gguf_type}.gguf --jinja"]
    if request.to == "adapter":
        return []
    return [f'llamafarm generate --model {folder} --prompt "…"']


def notes(
    request: ExportRequest, located: Located, figures: Mapping[str, float], dtype: str, begins: str = ""
) -> list[str]:
    """What a user should know of the comparison; `begins` names the token that every row begins with, if one does."""
    told = []
    share = figures.get("rounding_of_effect", 0.0)
    if share > _LARGE:
        told.append(
            f"rounding to {dtype} changes the answers {share:.1f} times as much as training did: use --dtype float32"
        )
    quantized = read_quantization(located.folder) if located.folder and located.is_adapter else {}
    adapter = request.to == "adapter" or request.keep_adapter
    if quantized and adapter:
        told.append(
            "trained on a base rounded to 4 or 8 bits: on the base as it is published, answers differ a little; "
            "a merged export has the rounded base inside"
        )
    elif quantized:
        told.append("merged into the base as training saw it: rounded to 4 or 8 bits and taken back")
    if adapter and located.folder and any(record.type == "bos-scaling" for record in read_methods(located.folder)):
        told.append("bos-scaling is no part of the adapter's weights: only llamafarm puts it back")
    elif begins:
        told.append(
            f"every row has to begin with {begins}: chat template and tokenizer of this export put it there, "
            "a prompt that bypasses both must bring it"
        )
        taken, compared = (int(figures.get(name, 0)) for name in ("first_token_taken_inside", "tokens_compared"))
        told.append(
            f"weights cannot tell the beginning of a row: where {begins} stands inside of one, brought by a prompt or "
            f"taken by the model, this export scales it as well, which training did not; it is left out of the answers "
            f"that are compared (the trained model would have taken it at {taken} of {compared} places)"
        )
    return told


def write_for_server(
    request: ExportRequest, folder: Path, file: str | None, tokenizer: Any, config: Any, ends: Sequence[int]
) -> list[str]:
    """Write what the server needs besides the weights; returns what is to be said of it."""
    told = _splitting(tokenizer) if file else []
    if request.to != "ollama":
        return told
    derived, said = derive(tokenizer)
    modelfile = Modelfile(
        source=f"./{file}" if file else ".",
        template=derived,
        stops=[str(tokenizer.convert_ids_to_tokens(token)) for token in ends],
        num_ctx=request.num_ctx or int(getattr(config, "max_position_embeddings", 0)) or None,
        temperature=request.temperature,
        system=request.system,
    )
    (folder / "Modelfile").write_text(modelfile.text(), encoding="utf-8")
    return [*told, *said]


def _splitting(tokenizer: Any) -> list[str]:
    """A warning where llama.cpp may cut text otherwise than training did."""
    from llamafarm.export._gguf_vocabulary import splitting

    if splitting(tokenizer) is not None:
        return []
    return ["llama.cpp may cut text into other tokens: it has no name for how this tokenizer does; try verify-serve"]


def _options(located: Located) -> dict[str, Any]:
    assert located.folder is not None
    return read_adapter_config(located.folder)
