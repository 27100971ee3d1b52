from __future__ import annotations

from pathlib import Path

THEIRS = """\
model_name_or_path: builtin:tiny
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
lora_rank: 16
dataset: data.jsonl
cutoff_len: 1024
val_size: 0.1
per_device_train_batch_size: 2
learning_rate: 5.0e-4
warmup_ratio: 0.1
ddp_timeout: 180000000
preprocessing_num_workers: 16
overwrite_cache: true
plot_loss: true
bf16: true
output_dir: saves/x
"""


def test_a_file_of_llamafactory_becomes_a_strategy(cli):
    Path("lf.yaml").write_text(THEIRS)
    ended = cli("strategies", "import", "lf.yaml")
    assert (ended.code, ended.out) == (0, "lf-strategy.yaml\n")
    text = Path("lf-strategy.yaml").read_text()
    assert "    lora_rank: 16\n" in text
    assert "data_splitter: {type: random, config: {eval_percentage: 10}}" in text
    assert "do_train" not in text
    assert cli("validate", "lf-strategy.yaml").code == 0
    explained = cli("explain", "lf-strategy.yaml", "training.batch_size")
    assert "2" in explained.out
    again = cli("strategies", "import", "lf.yaml")
    assert again.code != 0


def test_another_file_is_refused(cli):
    Path("other.yaml").write_text("fine_tuner: {type: pytorch}\n")
    ended = cli("strategies", "import", "other.yaml")
    assert ended.code == 2
    assert "LF-STRATEGY-090" in ended.err
    assert not Path("other-strategy.yaml").exists()


def test_a_key_that_nobody_knows_is_found_at_once(cli):
    Path("lf.yaml").write_text(THEIRS + "lora_rnk: 3\n")
    ended = cli("strategies", "import", "lf.yaml")
    assert ended.code == 2
    assert "did you mean 'lora_rank'?" in ended.err
