"""Tokenization uses all cores."""

from __future__ import annotations

import os
import sys

import pytest

from llamafarm.testing.fresh import fresh

THREADS = """
import os
os.environ.pop("TOKENIZERS_PARALLELISM", None)
from llamafarm.api import BaseModelConfig, Example, Message, RowRef
from llamafarm.data.tokens import tokenize
from llamafarm.models._tokenizer import load_tokenizer

def threads():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("Threads")).split()[1])

tokenizer = load_tokenizer(BaseModelConfig(huggingface_id="builtin:tiny"))
rows = [
    Example(RowRef("rows", number), (Message("user", f"lamp {number}"), Message("assistant", f"on {number}")))
    for number in range(200)
]
before = threads()
tokenize(rows, tokenizer, stage="sft", max_seq_length=99, train_on_inputs=False)
answer = threads() - before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_rows_are_tokenized_by_as_many_threads_as_there_are_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert fresh(THREADS) == (cores if cores > 1 else pytest.approx(0, abs=1))
