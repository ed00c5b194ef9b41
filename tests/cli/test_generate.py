"""`mmft generate`: completions for the rows of a split."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmft.cli import main
from tests.cli.support import lines, write_config


def test_generate_writes_greedy_or_sampled_completions(run_folder: Path, tmp_path: Path):
    target = tmp_path / "said.jsonl"
    argv = ["generate", "--config", str(run_folder / "config.yaml"), "--output_file", str(target)]
    assert main(argv) == 0
    greedy = [line["completions"] for line in lines(target)]
    samples = lines(run_folder / "samples.jsonl")
    assert [each[0]["completion"] for each in greedy] == [
        sample["before"]["completion"] for sample in samples
    ]
    assert main([*argv, "--do_sample", "--num_generations", "4", "--per_device_train_batch_size", "4"]) == 0
    sampled = [line["completions"] for line in lines(target)]
    assert [len(each) for each in sampled] == [4, 4, 4]
    assert len({each["completion"] for group in sampled for each in group}) > 1


def test_generate_needs_no_rewards(run_folder: Path, tmp_path: Path):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    path = write_config(tmp_path, config | {"reward_funcs": [], "eval_funcs": [], "reward_weights": None})
    target = tmp_path / "said.jsonl"
    assert main(["generate", "--config", path, "--output_file", str(target)]) == 0
    assert all(line["completions"][0]["reward"] is None for line in lines(target))
