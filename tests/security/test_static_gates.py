"""What the code never does, read from its syntax trees. An exception needs a reason here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_MODULES = {
    "pickle": "unpickling runs code",
    "cPickle": "unpickling runs code",
    "_pickle": "unpickling runs code",
    "dill": "unpickling runs code",
    "cloudpickle": "unpickling runs code",
    "joblib": "unpickling runs code",
    "shelve": "unpickling runs code",
    "marshal": "it holds code",
    "yaml": "ruamel.yaml's safe parser is the one",
    "tarfile": "archives are not unpacked",
    "zipfile": "archives are not unpacked",
    "xmlrpc": "nothing is served or called",
    "telnetlib": "nothing is served or called",
}
FORBIDDEN_CALLS = {
    "eval": "text is never code",
    "exec": "text is never code",
    "compile": "text is never code",
    "__import__": "names in files choose no module",
    "os.system": "no shell",
    "os.popen": "no shell",
    "subprocess.getoutput": "no shell",
    "subprocess.getstatusoutput": "no shell",
    "tempfile.mktemp": "another user may be faster",
    "shutil.unpack_archive": "archives are not unpacked",
    "torch.load": "it unpickles",
    "torch.save": "it pickles",
    "torch.hub.load": "it runs code of others",
    "yaml.load": "it makes objects",
    "jinja2.Template": "not sandboxed",
    "jinja2.Environment": "not sandboxed",
    "input": "nobody may be there to answer",
}
JUSTIFIED = {
    "llamafarm/capture/_capture.py": ("torch.save", "the documented form of what `capture` writes; nothing reads it"),
}
PIPES = {
    "llamafarm/data/helpers.py": "between this process and its own children, over pipes that nobody else holds",
    "llamafarm/data/judge.py": "the child's end of the same pipes",
}
"""Modules that pickle, and what never leaves the machine's memory."""
SAYS_TRUST = {
    # loads what this very run wrote a moment ago, by the engine's own store
    "plugins/llamafarm_tuners/pytorch/_checkpoints.py",
}


def sources() -> Iterator[Path]:
    for folder in ("llamafarm", "plugins", "examples"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a called name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def constant(call: ast.Call, name: str) -> object:
    return next(
        (one.value.value for one in call.keywords if one.arg == name and isinstance(one.value, ast.Constant)), None
    )


def offences(text: str, path: str) -> Iterator[str]:  # noqa: PLR0912  # one branch for each kind of node
    tree = ast.parse(text)
    for node in ast.walk(tree):
        at = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                top = name.partition(".")[0]
                if top in FORBIDDEN_MODULES and path not in PIPES:
                    yield f"{at}: imports {name}: {FORBIDDEN_MODULES[top]}"
        elif isinstance(node, ast.Call):
            yield from _calls(node, at, path)
        elif isinstance(node, ast.ExceptHandler):
            broad = node.type is None or dotted(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(one, ast.Pass) for one in node.body):
                yield f"{at}: everything that goes wrong is passed over"
            if node.type is None:
                yield f"{at}: a bare except"
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if isinstance(node.value, ast.Constant) and node.value.value is not False:
                yield f"{at}: trust_remote_code is decided in code"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                trust = isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                if trust and isinstance(value, ast.Constant) and value.value in (True, None):
                    yield f"{at}: trust_remote_code is decided in code"


def _calls(node: ast.Call, at: str, path: str) -> Iterator[str]:
    name = dotted(node.func)
    if name in FORBIDDEN_CALLS and JUSTIFIED.get(path, ("",))[0] != name:
        yield f"{at}: calls {name}: {FORBIDDEN_CALLS[name]}"
    if constant(node, "shell"):
        yield f"{at}: a shell"
    if constant(node, "weights_only") is False:
        yield f"{at}: weights_only=False"
    if name.endswith("extractall"):
        yield f"{at}: archives are not unpacked"
    last = name.rpartition(".")[2]
    owner = name.rpartition(".")[0]
    if last == "from_pretrained" and owner.startswith("Auto") and path not in SAYS_TRUST:
        given = {one.arg for one in node.keywords}
        if "trust_remote_code" not in given and None not in given:
            yield f"{at}: {name} does not say trust_remote_code: it would ask on the terminal"
    if (
        last in ("read_text", "write_text")
        and "distribution" not in owner
        and not any(one.arg in ("encoding", None) for one in node.keywords)
    ):
        yield f"{at}: {last} without encoding"
    if last == "open" and owner not in ("gzip", "os", "webbrowser", "Image"):
        places = [*node.args, *(one.value for one in node.keywords if one.arg == "mode")]
        binary = any(
            isinstance(one, ast.Constant) and isinstance(one.value, str) and "b" in one.value for one in places
        )
        if not binary and not any(one.arg == "encoding" for one in node.keywords):
            yield f"{at}: a text file without encoding"


def test_no_file_does_what_must_never_be_done():
    found = [
        one for path in sources() for one in offences(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert found == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "eval('1')",
        "exec(code)",
        "import os\nos.system('x')",
        "subprocess.run('x', shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "tempfile.mktemp()",
        "archive.extractall(path)",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    g()",
        "load(trust_remote_code=True)",
        "load(trust_remote_code=None)",
        "options = {'trust_remote_code': True}",
        "AutoModel.from_pretrained(path)",
        "open('x')",
        "open('x', 'w')",
        "path.open()",
        "path.read_text()",
        "path.write_text(text)",
        "input('run the code? [y/N]')",
    ],
)
def test_the_gates_can_close(bad: str):
    assert list(offences(bad, "x.py"))


def test_no_strategy_that_ships_asks_for_more_than_data_may():
    for folder in ("strategies", "configs"):
        for path in (ROOT / folder).rglob("*.yaml"):
            text = path.read_text(encoding="utf-8")
            assert "trust_remote_code: true" not in text, path
            assert "push_to_hub: true" not in text, path


def test_no_child_gets_the_whole_environment():
    """A child process of ours has an allow-listed environment, or is one that the user named or that needs it."""
    reasons = {
        "llamafarm/export/_gguf.py": "the user's own script, by LLAMA_CPP",
        "llamafarm/data/helpers.py": "our own interpreter, whose variables say how it is set up",
        "llamafarm/testing/fresh.py": "the tests' own interpreter",
        "plugins/llamafarm_hardware/nvidia.py": "nvidia-smi needs the loader's variables",
        "examples/python/train_and_ask.py": "the user's own program starts the command as a shell does",
    }
    for path in sources():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func) in ("subprocess.run", "subprocess.Popen"):
                given = {one.arg for one in node.keywords}
                assert "env" in given or None in given or name in reasons, name
                assert node.args, name
                assert not isinstance(node.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp)), "a list of arguments"
