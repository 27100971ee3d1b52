from __future__ import annotations

import pytest

from llamafarm.cli.redact import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub_token: hf_x", "hub_token: [redacted]"),
        ("  token: 'my pass word'", "  token: [redacted]"),
        ("--set base_model.token=abc --epochs 3", "--set base_model.token=[redacted] --epochs 3"),
        ("see hf_abcdefghijkl here", "see [redacted] here"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("https://me:pass@host/x", "https://[redacted]@host/x"),
        ("key sk-abcdefghijklmnopqrst", "key [redacted]"),
        ("value from-the-environment", "value [redacted]"),
        ("eos_token: <|eos|>", "eos_token: <|eos|>"),
        ("max_tokens: 5, tokens_per_second: 7", "max_tokens: 5, tokens_per_second: 7"),
        ("the tokenizer: none", "the tokenizer: none"),
        ("short", "short"),
    ],
)
def test_secrets_go_and_the_rest_stays(text, expected):
    assert redact(text, {"A_SECRET": "from-the-environment", "B_TOKEN": "short", "PATH": "the"}) == expected
