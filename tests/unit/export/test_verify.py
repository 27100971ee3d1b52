from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from transformers import AutoTokenizer

from llamafarm.errors import ModelError, QualityError, UsageError
from llamafarm.export._export import export
from llamafarm.export.endpoint import find_endpoint
from llamafarm.export.request import ExportRequest
from llamafarm.export.verify import by_endpoint, by_modelfile, by_tokenizer, verify

TOOLS = (
    "{{ bos_token }}{% if tools %}{{ '<|system|>' + (tools | tojson) + eos_token }}{% endif %}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture
def tokenizer(base_of):
    made = AutoTokenizer.from_pretrained(base_of("llama"))
    made.chat_template = TOOLS
    return made


def turns(body):
    """What servers do with a request: arguments of calls are JSON text there."""
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return body["messages"], body.get("tools")


class Server(BaseHTTPRequestHandler):
    """Tokenizes with the tokenizer it is given, as vLLM or llama.cpp answer."""

    tokenizer = None
    kind = "vllm"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = getattr(self, self.kind.replace(".", "_"))(body)
        self.send_response(200 if answer is not None else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def render(self, body):
        messages, tools = turns(body)
        return self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)

    def vllm(self, body):
        if self.path != "/tokenize":
            return None
        ids = self.tokenizer(self.render(body), add_special_tokens=body.get("add_special_tokens", False))["input_ids"]
        return {"count": len(ids), "max_model_len": 256, "tokens": ids}

    def llama_cpp(self, body):
        if self.path == "/apply-template":
            return {"prompt": self.render(body).removeprefix(self.tokenizer.bos_token)}
        if self.path == "/tokenize":
            return {"tokens": self.tokenizer(body["content"], add_special_tokens=body["add_special"])["input_ids"]}
        return None

    def openai(self, body):
        return {"choices": []} if self.path == "/v1/chat/completions" else None

    def odd(self, body):
        return {"something": "else"}


@pytest.fixture
def serve(tokenizer):
    servers = []

    def start(kind, served=None):
        handler = type("Handler", (Server,), {"tokenizer": served or tokenizer, "kind": kind})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_a_server_with_the_trained_tokenizer_sees_the_same(kind, serve, tokenizer):
    endpoint = find_endpoint(serve(kind) + "/v1")
    assert endpoint.server == kind
    verdict = verify(tokenizer, by_endpoint(endpoint), "the server")
    assert (verdict.compared, verdict.different) == (50, 0)
    assert set(verdict.kinds) == {"single", "system", "turns", "tools", "tool answer"}
    assert verdict.notes == []
    verdict.require()


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_a_server_with_another_template_is_found(kind, serve, tokenizer, base_of):
    other = AutoTokenizer.from_pretrained(base_of("llama"))
    other.chat_template = TOOLS.replace("message['content']", "message['content'] | trim")
    verdict = verify(tokenizer, by_endpoint(find_endpoint(serve(kind, other))), "the server")
    assert 0 < verdict.different < 50, "only contents with blanks at their ends"
    with pytest.raises(QualityError, match="conversations become other tokens: first at token") as caught:
        verdict.require()
    assert caught.value.problems[0].id == "LF-QUALITY-004"
    assert caught.value.exit_code == 12


def test_a_server_that_drops_tools_is_found(serve, tokenizer, base_of):
    deaf = AutoTokenizer.from_pretrained(base_of("llama"))
    deaf.chat_template = TOOLS.replace("{% if tools %}", "{% if false %}")
    served = by_endpoint(find_endpoint(serve("vllm", deaf)))
    verdict = verify(tokenizer, served, "the server")
    assert {kind: tally.different for kind, tally in verdict.kinds.items() if tally.different} == {
        "tools": 10,
        "tool answer": 10,
    }
    without = verify(tokenizer, served, "the server", tools=False)
    assert (without.compared, without.different) == (30, 0)
    assert without.notes == ["conversations with tools were left out"]


@pytest.mark.parametrize(
    ("kind", "message"), [("openai", "the server shows no tokens"), ("odd", "the server's answer has no 'prompt'")]
)
def test_a_server_that_shows_no_tokens_cannot_be_checked(kind, message, serve, tokenizer):
    with pytest.raises(ModelError, match=message) as caught:
        verify(tokenizer, by_endpoint(find_endpoint(serve(kind))), "the server")
    assert caught.value.problems[0].id == "LF-MODEL-119"


def test_nobody_there_and_no_address(serve):
    with pytest.raises(ModelError, match="does not answer"):
        find_endpoint("http://127.0.0.1:9")
    with pytest.raises(UsageError, match="is no address") as caught:
        find_endpoint("ftp://127.0.0.1/x")
    assert caught.value.problems[0].id == "LF-USAGE-023"


def test_a_tokenizer_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert verify(tokenizer, by_tokenizer(AutoTokenizer.from_pretrained(tmp_path)), "folder").different == 0
    (tmp_path / "chat_template.jinja").unlink()
    none = verify(tokenizer, by_tokenizer(AutoTokenizer.from_pretrained(tmp_path)), "folder")
    assert none.different == 50
    with pytest.raises(QualityError, match="the server refuses a conversation"):
        none.require()


def test_without_a_trained_template_there_is_nothing_to_verify(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        verify(tokenizer, by_tokenizer(tokenizer), "itself")


def test_an_exported_modelfile_is_what_was_trained_and_a_changed_one_is_not(trained, registry, tmp_path):
    pytest.importorskip("gguf")
    request = ExportRequest(
        str(trained()), "ollama", tmp_path / "out", system="Be brief.", temperature=0.2, num_ctx=128
    )
    report = export(request, registry)
    file = tmp_path / "out" / "Modelfile"
    text = file.read_text()
    for line in (
        'PARAMETER stop "<|eos|>"',
        "PARAMETER num_ctx 128",
        "PARAMETER temperature 0.2",
        'SYSTEM """Be brief',
    ):
        assert line in text
    assert report.commands[0].startswith("ollama create ")
    trained_one = AutoTokenizer.from_pretrained(trained())
    served, notes = by_modelfile(file, trained_one)
    assert any("SYSTEM stands before" in note for note in notes)
    assert verify(trained_one, served, "Modelfile", tools=False).different == 0
    file.write_text(text.replace("<|assistant|>", "<|assistant|>\n"))
    assert verify(trained_one, by_modelfile(file, trained_one)[0], "Modelfile").different == 50
    file.write_text("FROM llama3\n")
    with pytest.raises(ModelError, match="the Modelfile has no TEMPLATE"):
        by_modelfile(file, trained_one)


def test_a_gguf_that_adds_no_bos_is_found(trained, registry, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    from gguf import GGUFWriter

    monkeypatch.setattr(GGUFWriter, "add_add_bos_token", lambda self, value: None)
    export(ExportRequest(str(trained()), "ollama", tmp_path / "out"), registry)
    trained_one = AutoTokenizer.from_pretrained(trained())
    served, _ = by_modelfile(tmp_path / "out" / "Modelfile", trained_one)
    assert verify(trained_one, served, "Modelfile").different == 50
