"""What a run folder says of the change, on made-up answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmft.cli.arguments import parse_run
from mmft.cli.launch import clear_results
from mmft.cli.launch import write_config as write_config_of_run
from mmft.cli.run_folder import closing, judge_training, unoptimised_measures, weights_of
from mmft.engine.judging import RewardSuite
from mmft.evaluation.bootstrap import Resampling
from mmft.report.record import Evaluation, Outcome
from mmft.trainers.held_out import held_out_means
from tests.cli.support import SETTINGS, write_config
from tests.reference.rewards import byte_variety, large_ids, small_ids

QUICK = Resampling(num_resamples=200)
NOUNS = "circle square star ring cross moon heart arrow cube cone disc line".split()


def evaluation(rewards: list[float], truths: list[float], words: int = 2) -> Evaluation:
    samples = [
        {
            "row": row,
            "completion": " ".join([noun, *["red", "blue", "green", "grey"] * 6][:words]),
            "tokens": words,
            "ended": True,
            "reward": reward,
            "rewards": {"reward": reward, "truth": truth},
        }
        for row, (noun, reward, truth) in enumerate(zip(NOUNS, rewards, truths, strict=True))
    ]
    return Evaluation(held_out_means(samples), samples)


def test_longer_for_more_reward_and_less_truth_is_two_warnings():
    before = evaluation([0.2, 0.3] * 6, [1.0, 0.9] * 6)
    after = evaluation([0.8, 0.9] * 6, [0.3, 0.4] * 6, words=20)
    told = judge_training(Outcome(before, after, 1.0), ["rewards/truth"], QUICK)
    assert [text.split(" ")[0:2] for text in told["warnings"]] == [
        ["The", "optimised"],
        ["Completions", "grew"],
    ]
    assert "truth, which was not optimised, fell from 0.950 to 0.350" in told["warnings"][0]
    assert told["differences"]["rewards/truth"].is_below_zero
    assert told["health"]["after"].mean_words == 20


def test_more_reward_and_more_truth_is_none():
    before, after = evaluation([0.2, 0.3] * 6, [0.3] * 12), evaluation([0.8, 0.9] * 6, [0.9] * 12)
    assert judge_training(Outcome(before, after, 1.0), ["rewards/truth"], QUICK)["warnings"] == []


def test_without_held_out_rows_there_is_nothing_to_say():
    told = judge_training(Outcome(None, None, 1.0), ["rewards/truth"], QUICK)
    assert told == {"differences": {}, "health": None, "warnings": []}


def test_rewards_of_weight_zero_are_the_unoptimised_ones():
    suite = RewardSuite([byte_variety, small_ids, large_ids], [1.0, 0.0, 0.0])
    measures = ["reward", "rewards/small_ids", "metrics/bleu_4"]
    expected = ["rewards/small_ids", "rewards/large_ids", "metrics/bleu_4"]
    assert unoptimised_measures(weights_of(suite), measures) == expected


@pytest.mark.parametrize(
    ("paid", "left"),
    [
        ("cider_d", ["metrics/bleu_1", "metrics/bleu_4", "metrics/clip_score"]),
        ("bleu_2_reward", ["metrics/cider_d", "metrics/clip_score"]),
        ("ref_clip_score", ["metrics/bleu_1", "metrics/bleu_4", "metrics/cider_d"]),
    ],
)
def test_a_metric_that_was_paid_for_is_no_witness(paid: str, left: list[str]):
    metrics = ["metrics/bleu_1", "metrics/bleu_4", "metrics/cider_d", "metrics/clip_score"]
    assert unoptimised_measures({paid: 0.5}, metrics) == left
    assert unoptimised_measures({paid: 0.0}, metrics) == [f"rewards/{paid}", *metrics]


def test_warnings_and_masked_samples_come_before_the_files():
    summary = {
        "steps": 2, "wall_seconds": 1.0, "packed": True, "warnings": ["Too long."],
        "masked_samples": {"judge": 4, "clip": 1},
    }  # fmt: skip
    assert closing(Path("runs/x"), summary).splitlines()[:3] == [
        "WARNING Too long.",
        "left out of training: 4 samples that reward judge failed on, 1 sample that reward clip failed on",
        "2 steps in 1 s; scoring: each prompt shared by its completions",
    ]


def test_only_files_that_were_written_are_named(tmp_path: Path):
    (tmp_path / "summary.json").touch()
    (tmp_path / "README.md").touch()
    summary = {"packed": True, "warnings": [], "masked_samples": {}, "steps": 1, "wall_seconds": 1.0}
    assert closing(tmp_path, summary).endswith("holds the trained weights and summary.json, README.md")


@pytest.mark.parametrize("resumes", [False, True])
def test_a_folder_used_again_holds_no_results_of_another_run(tmp_path: Path, resumes: bool):
    results = [
        "summary.json", "samples.jsonl", "episodes.jsonl", "report.html", "samples/00000.jpg",
        "samples/00000_1.jpg", "explain/0_heat.png", "explain/explain.json",
    ]  # fmt: skip
    others = [
        "samples/mine.jpg", "explain/mine.png", "checkpoint-2/trainer_state.json", "heads.safetensors",
        "metrics.jsonl",
    ]  # fmt: skip
    for name in results + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    told = {"samples": {"0": {"picture": "explain/0_heat.png"}}, "figures": []}
    (tmp_path / "explain" / "explain.json").write_text(json.dumps(told))
    argv = ["--config", write_config(tmp_path, SETTINGS)]
    argv += ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "true" if resumes else "false"]
    write_config_of_run(parse_run("ppo", argv))
    assert all((tmp_path / name).is_file() == resumes for name in results)
    assert all((tmp_path / name).is_file() for name in [*others, "config.yaml"])


def test_folders_that_held_only_results_go_with_them(tmp_path: Path):
    clear_results(tmp_path / "nowhere")
    for name in ("samples.jsonl", "samples/00000.jpg", "explain/explain.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    clear_results(tmp_path)
    assert [*tmp_path.iterdir()] == []
