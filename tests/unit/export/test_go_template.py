from __future__ import annotations

import pytest

from llamafarm.errors import ModelError
from llamafarm.export.go_template import render

DATA = {
    "System": "be kind",
    "Tools": None,
    "Messages": [{"Role": "user", "Content": "hi {{ there }}"}, {"Role": "assistant", "Content": "yes"}],
    "N": 3,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{ .System }}!", "be kind!"),
        ("a {{- .System -}} b", "abe kindb"),
        ("{{ if .System }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .Tools }}yes{{ else if eq .N 3 }}three{{ else }}no{{ end }}", "three"),
        ("{{ range .Messages }}[{{ .Role }}]{{ end }}", "[user][assistant]"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ end }}", "0user1assistant"),
        ("{{ range $m := .Messages }}{{ $m.Role }}{{ end }}", "userassistant"),
        ("{{ range .Missing }}x{{ else }}none{{ end }}", "none"),
        ("{{ range $i, $_ := .Messages }}{{ eq (len (slice $.Messages $i)) 1 }} {{ end }}", "false true "),
        ("{{ range .Messages }}{{ $.System }};{{ end }}", "be kind;be kind;"),
        ('{{ if and (ne .System "x") (not .Tools) }}ok{{ end }}', "ok"),
        ('{{ or .Tools "fallback" }}', "fallback"),
        ("{{ (index .Messages 1).Content }}", ModelError),
        ("{{ $last := .N }}{{ $last }}", "3"),
        ('{{ "{{" }} {{ `raw "x"` }}', '{{ raw "x"'),
        ("{{ .Messages | len }}", "2"),
        ("{{ json .N }}", "3"),
        ("{{/* a remark */}}x", "x"),
        ("{{ range .Messages }}{{ .Content }}{{ end }}", "hi {{ there }}yes"),
        ("{{ with .System }}x{{ end }}", ModelError),
        ("{{ currentDate }}", ModelError),
        ("{{ if .System }}", ModelError),
        ("{{ end }}", ModelError),
        ("{{ $unset }}", ModelError),
        ("{{ .System & 1 }}", ModelError),
    ],
)
def test_templates(template, expected):
    if expected is ModelError:
        with pytest.raises(ModelError, match="not understood here") as caught:
            render(template, DATA)
        assert caught.value.problems[0].id == "LF-MODEL-118"
    else:
        assert render(template, DATA) == expected
