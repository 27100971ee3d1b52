"""A hub that refuses: a real server, asked by the real client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llamafarm.testing.fresh import fresh

ASK = """
from llamafarm.api import BaseModelConfig
from llamafarm.errors import LlamaFarmError
from llamafarm.models.hub import fetch_config
model, revision, cache = arguments
try:
    answer = [0, str(fetch_config(model, BaseModelConfig(huggingface_id=model, revision=revision, cache_dir=cache)))]
except LlamaFarmError as error:
    answer = [int(error.exit_code), str(error)]
"""


class Hub(BaseHTTPRequestHandler):
    """Knows one model, one that is gated, and one without a config."""

    def do_GET(self) -> None:
        self.do_HEAD()

    def do_HEAD(self) -> None:
        owner, revision = self.path.split("/")[1], self.path.split("/")[-2]
        if owner == "open" and revision == "main":
            self.answer(200)
        elif owner == "open":
            self.answer(404, "RevisionNotFound")
        elif owner == "bare":
            self.answer(404, "EntryNotFound")
        elif owner == "gated":
            self.answer(403, "GatedRepo")
        else:
            self.answer(401, "RepoNotFound")

    def answer(self, status: int, code: str = "") -> None:
        body = b"{}" if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"etag"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("model", "revision", "code", "shown"),
    [
        ("open/model", None, 0, "config.json"),
        ("open/model", "v9", 4, "has no revision 'v9' [LF-MODEL-007]"),
        ("gated/model", "v1", 11, "LF-NET-002"),
        ("absent/model", None, 4, "there is no model 'absent/model': neither a folder here nor on the hub"),
        ("bare/model", None, 4, "has no config.json [LF-MODEL-002]"),
        (
            "gated/model",
            None,
            11,
            "is gated; accept its terms on the hub, and set base_model.token: ${HF_TOKEN}",
        ),
    ],
)
def test_what_the_hub_answers_is_said_in_plain_words(hub, tmp_path, model, revision, code, shown) -> None:
    exit_code, text = fresh(ASK, model, revision, str(tmp_path))
    assert shown in text
    assert exit_code == code
