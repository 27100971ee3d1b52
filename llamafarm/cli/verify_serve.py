"""`verify-serve`: a server's tokens against those of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import show_table
from llamafarm.errors import UsageError

if TYPE_CHECKING:
    from llamafarm.export.verify import Ids, Verdict


def verify_serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The trained model: its tokenizer is the truth.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="A running vLLM or llama.cpp server.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="A folder or hub id that is served.")] = None,
    modelfile: Annotated[Path | None, typer.Option("--modelfile", help="An Ollama Modelfile.")] = None,
    served_name: Annotated[str | None, typer.Option("--served-name", help="The model's name on the server.")] = None,
    no_tools: Annotated[bool, typer.Option("--no-tools", help="Leave out conversations with tools.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whether a server turns conversations into the tokens that training saw.

    Fifty conversations with several turns, system texts, tools and odd characters. Ends with 12 if one differs.
    """
    session = session_of(context)
    if model is None:
        hint = "usage: llamafarm verify-serve MODEL --url URL"
        raise UsageError.of("LF-USAGE-006", "no model is named", where=context.command_path, hint=hint)
    given = {"--url": url, "--tokenizer": tokenizer, "--modelfile": modelfile}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        what = "nothing to compare with is given" if not chosen else f"{' and '.join(chosen)} exclude each other"
        raise UsageError.of("LF-USAGE-023", what, hint=f"give one of {', '.join(given)}")
    from llamafarm.export.verify import verify

    trained, begins = _trained(model)
    served, notes = _served(trained, url, tokenizer, modelfile, served_name)
    verdict = verify(trained, served, str(next(filter(None, given.values()))), tools=not no_tools)
    verdict.notes += [*begins, *notes]
    if as_json:
        session.result_json(
            {**dataclasses.asdict(verdict), "compared": verdict.compared, "different": verdict.different}
        )
    else:
        _show(session, verdict)
    verdict.require()


def _served(
    trained: Any, url: str | None, tokenizer: str | None, modelfile: Path | None, served_name: str | None
) -> tuple[Ids, list[str]]:
    from llamafarm.export import verify

    if url is not None:
        from llamafarm.export.endpoint import find_endpoint

        endpoint = find_endpoint(url, served_name)
        return verify.by_endpoint(endpoint), [f"the server speaks as {endpoint.server} does"]
    if modelfile is not None:
        return verify.by_modelfile(modelfile, trained)
    assert tokenizer is not None
    return verify.by_tokenizer(_tokenizer(tokenizer)), []


def _trained(model: str) -> tuple[Any, list[str]]:
    """The tokenizer as training used it, and what is to be said of that."""
    from llamafarm.core.registry import load_registry
    from llamafarm.core.trained import first_token_of
    from llamafarm.export.beginning import beginning_with
    from llamafarm.models.first_token import described_token

    tokenizer = _tokenizer(model)
    first = first_token_of(model, tokenizer, load_registry())
    if first is None:
        return tokenizer, []
    return beginning_with(tokenizer, first), [f"training began every row with {described_token(tokenizer, first)}"]


def _tokenizer(name: str) -> Any:
    from llamafarm.api import BaseModelConfig
    from llamafarm.models._tokenizer import load_tokenizer

    return load_tokenizer(BaseModelConfig(huggingface_id=name))


def _show(session: Session, verdict: Verdict) -> None:
    rows = [[kind, str(tally.same), str(tally.different), str(tally.refused)] for kind, tally in verdict.kinds.items()]
    show_table(session, ["CONVERSATIONS", "SAME", "DIFFERENT", "NOT IN THE TEMPLATE"], rows)
    for note in verdict.notes:
        session.notice(note)
