"""What goes into packs, and what a batch makes of them; that they are computed apart is in test_fast_paths."""

from __future__ import annotations

import re

import torch

from llamafarm.api import TrainingConfig
from llamafarm.data.packing import Pack, join, pack
from llamafarm.data.tokens import TokenizedRow
from llamafarm.errors import Problem
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._batches import documents, in_one_row, masked, padded
from llamafarm_tuners.pytorch.checks import check
from llamafarm_tuners.pytorch.packs import packed_rows


def row(start: int, length: int, prompt: int) -> TokenizedRow:
    ids = [(start * 31 + at * 17) % 300 + 5 for at in range(length)]
    return TokenizedRow(ids, [-100] * prompt + ids[prompt:])


ROWS = [row(1, 14, 5), row(2, 9, 0), row(3, 22, 12), row(4, 3, 1), row(5, 11, 0), row(6, 17, 9)]


def test_a_pack_is_computed_as_its_documents():
    packs = pack(ROWS, 40, 0)
    assert 1 < len(packs) < len(ROWS)
    for lay_out in (in_one_row, lambda rows: padded(rows, 0)):
        batch, alone = lay_out(packs), lay_out(documents(packs))
        assert torch.equal(batch.input_ids, alone.input_ids)
        assert torch.equal(batch.targets, alone.targets)
    assert sorted(row.input_ids for row in documents(packs)) == sorted(row.input_ids for row in ROWS)


def test_no_document_predicts_the_first_token_of_the_next():
    first, second = row(1, 3, 0), row(2, 2, 0)
    batch = in_one_row([join([first, second])])
    assert batch.targets.tolist() == [[*first.labels[1:], -100, second.labels[1], -100]]
    assert (batch.tokens, batch.labels) == (5, 3)


def test_a_pack_with_nothing_to_learn_stays_a_pack():
    nothing = masked(join(ROWS[:2]))
    assert isinstance(nothing, Pack)
    assert in_one_row([nothing]).labels == 0


def test_what_packing_makes_of_the_steps_is_said(tmp_path):
    run = RecordingRun(tmp_path)
    training = TrainingConfig(packing=True, packing_length=40, batch_size=1, gradient_accumulation_steps=2)
    packs = packed_rows(ROWS, training, run, 1)
    assert len(packs) == 2
    assert [event.fields["message"] for event in run.events] == [
        "packed 6 rows into 2 packs of at most 40 tokens (95% full); a step takes 2 packs, an epoch 1 steps"
    ]
    assert packed_rows(ROWS, TrainingConfig(), run, 1) is ROWS


def test_the_plan_says_what_a_step_takes(make):
    config, plan = make({"training": {"packing": True, "batch_size": 2, "max_seq_length": 512}})
    decision = next(item for item in check(config, plan) if item.subject == "packs per step and device")
    assert (decision.value, decision.reason) == ("2", "packing: batch_size counts packs of at most 512 tokens")


def test_a_pack_holds_the_longest_row(make):
    options = {"packing": True, "packing_length": 100, "max_seq_length": 512}
    config, plan = make({"training": options}, given=("training.packing_length",))
    problems = [item for item in check(config, plan) if isinstance(item, Problem)]
    assert [item.id for item in problems] == ["LF-TRAIN-016"]
    assert re.search("100 is below max_seq_length 512", problems[0].message)
