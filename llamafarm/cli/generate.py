"""`generate`: answer a prompt with a base model, a trained model, or an adapter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.files import refuse_existing, write_lines
from llamafarm.cli.options import TrustRemoteCode
from llamafarm.cli.problems import printable
from llamafarm.cli.session import session_of
from llamafarm.errors import UsageError

if TYPE_CHECKING:
    from llamafarm.api.values import Message
    from llamafarm.models._generate import Chat


def generate(
    context: typer.Context,
    prompt_argument: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads stdin.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Folder of a model or adapter, builtin:NAME, or hub id.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", "-s", help="What this strategy trained, instead of --model.")
    ] = None,
    prompt_option: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; - reads stdin.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message before the prompt.")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "--max-new-tokens", min=1, help="Longest answer, in tokens.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="0 takes the likeliest token; higher is more varied.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Draw from this share of likelihood.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Same seed, same answer.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as text, without a chat template.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer as it grows.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Also write the answer to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --save.")] = False,
) -> None:
    """Print the model's answer to a prompt."""
    session = session_of(context)
    _check(prompt_argument, prompt_option, system=system, raw=raw, stream=stream, as_json=as_json)
    if save is not None:
        refuse_existing(save, overwrite=overwrite)
    name = _model(model, strategy)
    prompt = _prompt(prompt_argument if prompt_option is None else prompt_option)
    sampling = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    shown = printable if sys.stdout.isatty() else str  # a model's words must not drive the terminal
    write = (lambda piece: session.result(shown(piece), end="")) if stream else None
    chat = [] if raw else _chat(system, prompt)
    answer = _answer(name, prompt, chat, sampling, write, trust_remote_code=trust_remote_code)
    if as_json:
        session.result_json({"model": name, "prompt": prompt, "system": system, **sampling, "answer": answer})
    else:
        session.result("" if stream else shown(answer))
    if save is not None:
        write_lines(save, [answer], overwrite=overwrite)
        session.say(f"saved {save}")


def _check(
    argument: str | None, option: str | None, *, system: str | None, raw: bool, stream: bool, as_json: bool
) -> None:
    """Refuse options that contradict each other."""
    pairs = {
        ("the prompt as an argument", "--prompt"): argument is not None and option is not None,
        ("--system", "--raw"): system is not None and raw,
        ("--stream", "--json"): stream and as_json,
    }
    for (one, other), clash in pairs.items():
        if clash:
            raise UsageError.of("LF-USAGE-004", f"{one} and {other} exclude each other", hint="keep one")


def _model(model: str | None, strategy: str | None) -> str:
    """The model that was asked for, found before anything heavy is imported."""
    from llamafarm.models.locate import locate

    if (model is None) == (strategy is None):
        what = "neither --model nor --strategy is" if model is None else "both --model and --strategy are"
        raise UsageError.of("LF-USAGE-006", f"{what} given", hint="give one, e.g. --model builtin:tiny")
    if model is None:
        from llamafarm.core.load import load
        from llamafarm.core.registry import load_registry
        from llamafarm.core.request import Request

        model = load(Request(strategy), load_registry()).tuner_config.output_dir
    locate(model)
    return model


def _prompt(given: str | None) -> str:
    if given not in (None, "-"):
        return given
    if given is None and sys.stdin.isatty():
        raise UsageError.of("LF-USAGE-006", "no prompt is given", hint="add --prompt TEXT, or pipe one in")
    text = sys.stdin.read().strip("\n")
    if not text:
        raise UsageError.of("LF-USAGE-006", "the prompt is empty: nothing came from stdin", hint="add --prompt TEXT")
    return text


def _chat(system: str | None, prompt: str) -> list[Message]:
    from llamafarm.api.values import Message

    return [*([Message("system", system)] if system is not None else []), Message("user", prompt)]


def _answer(
    name: str,
    text: str,
    chat: list[Message],
    sampling: dict[str, Any],
    write: Callable[[str], None] | None,
    *,
    trust_remote_code: bool,
) -> str:
    """The answer to a chat, in the form that training gave it; without a chat, the text's continuation."""
    from llamafarm.core.registry import load_registry
    from llamafarm.core.trained import load_trained
    from llamafarm.data.plain import plain_prompt
    from llamafarm.models._generate import Sampling, generate

    model, tokenizer, _ = load_trained(name, load_registry(), trust_remote_code=trust_remote_code)
    prompt: str | Chat = text
    if chat and tokenizer.chat_template is None:
        prompt = plain_prompt(chat, end=tokenizer.eos_token)
    elif chat:
        prompt = [{"role": message.role, "content": message.content} for message in chat]
    return str(generate(model, tokenizer, [prompt], Sampling(**sampling), stream=write)[0])
