"""Runs alone, as a script: render the chat template that comes on stdin, as JSON, and die where it exceeds a limit.

Needs jinja2 alone. Which text comes out is of no interest, so that functions of transformers are stood in for. Ends
with 3 if memory ran out, 4 if the text is too long; the system ends it when its CPU time is over.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CPU_SECONDS, _MEMORY, _LONGEST = 3, 1 << 30, 1_000_000


class _Generation(Extension):
    """`{% generation %}`: what it encloses."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _limit() -> None:
    with suppress(ImportError, OSError, ValueError):  # a system without such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _refuse(message: str) -> None:
    raise TemplateError(message)


def main() -> int:
    """Render; returns the exit code."""
    template = json.load(sys.stdin)
    _limit()
    turns = [
        {"role": role, "content": f"{role} says this.\nAnd that."}
        for role in ("system", "user", "assistant", "user", "assistant")
    ]
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, default=str)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda _: "1 Jan 2026"}
    specials = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    for messages, tools in ((turns, None), (turns[1:], None), (turns[1:4], [tool])):
        try:
            compiled = environment.from_string(template)
            text = compiled.render(messages=messages, tools=tools, add_generation_prompt=True, **specials)
        except MemoryError:
            return 3
        except (Exception, RecursionError):  # noqa: BLE001, S112  # what it refuses is said where it is used
            continue
        if len(text) > _LONGEST:
            return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
