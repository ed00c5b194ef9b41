"""`mmft check`: what would happen, and every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmft.cli import main
from tests.cli.support import SETTINGS, write_config
from tests.reference.rewards import CALLS


def test_check_tells_what_would_happen_and_writes_nothing(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    path = write_config(tmp_path, SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(run)})
    assert main(["check", "--config", path]) == 0
    said = capsys.readouterr().out
    for part in (
        "no problems found",
        "scoring: packed",
        "language",
        "peak memory",
        "lengths: prompt",
        "2 prompts x 2",
    ):
        assert part in said
    assert not run.exists()


def test_check_finds_every_problem_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"image": name, "references": references})
            for name, references in [("no.png", ["a"]), ("no.png", [""])]
        )
    )
    settings = SETTINGS | {"dataset_name": str(rows), "eval_split": None, "reward_funcs": ["captionin"]}
    settings |= {
        "model_name_or_path": str(tmp_path),
        "output_dir": str(tmp_path / "run"),
        "reward_weights": None,
    }
    assert main(["check", "--config", write_config(tmp_path, settings)]) == 1
    said = capsys.readouterr().out
    problems = [line for line in said.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == 4
    for part in ("row 0 of 'train'", "row 1 of 'train'", "captionin", "cannot be loaded"):
        assert sum(part in problem for problem in problems) == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_completion_length": 4000}, "exceed the model's"),
        ({"reward_funcs": ["tests.reference.rewards:abstains"]}, "no reward could judge the first row"),
        ({"reward_funcs": ["tests.reference.rewards:breaks"]}, "reward 'breaks' failed on row"),
        ({"use_peft": False, "trainable": []}, "nothing trains"),
        (
            {
                "algorithm": "rwl",
                "weighting": "reward",
                "reward_funcs": [{"name": "length", "min_length": 90, "max_length": 99}],
            },
            "row 0 of 'train' has the reward -",
        ),
    ],
)
def test_check_finds_what_shows_only_when_it_runs(
    settings: dict[str, Any],
    problem: str,
    model_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    config = SETTINGS | {
        "model_name_or_path": model_folder,
        "output_dir": str(tmp_path),
        "reward_weights": None,
    }
    assert main(["check", "--config", write_config(tmp_path, config | settings)]) == 1
    assert problem in capsys.readouterr().out


def check(folder: Path, settings: dict[str, Any]) -> int:
    names = {"model_name_or_path": "mmft/tiny-captioner", "output_dir": str(folder), "reward_weights": None}
    return main(["check", "--config", write_config(folder, SETTINGS | names | settings)])


def test_a_reward_that_breaks_the_protocol_is_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rewards = ["tests.reference.rewards:favours_the_first", "captioning"]
    assert check(tmp_path, {"reward_funcs": rewards}) == 0, "this run's own data may never show it"
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: reward")]
    assert notes
    assert all("'favours_the_first'" in note for note in notes)


def test_rewards_that_wait_or_learn_are_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rewards = [
        "tests.reference.rewards:counted",
        {"name": "composite", "scaling": "z-score", "parts": {"a": "bleu"}},
    ]
    assert check(tmp_path, {"reward_funcs": [*rewards, "cider_d"]}) == 0
    assert "note: reward" not in capsys.readouterr().out
    assert CALLS == [2], "once for the two completions of the first row"


def outcome(model_folder: str, folder: Path, settings: dict[str, Any]) -> int:
    names = {"model_name_or_path": model_folder, "output_dir": str(folder / "run")}
    return main(["check", "--config", write_config(folder, SETTINGS | names | settings)])


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"algorithm": "a2c"},
            [
                "method: A2C and a learned critic",
                "critic: a value head; reference policy: the policy without",
            ],
        ),
        (
            {"algorithm": "ppo", "advantage_estimator": "group", "use_peft": False},
            ["no critic", "critic: none; reference policy: a frozen copy of the weights that train"],
        ),
        ({"algorithm": "rwl"}, ["of its own completions", "critic: none; reference policy: none"]),
        ({"algorithm": "a2c", "kl_coef": 0.0}, ["critic: a value head; reference policy: none"]),
        (
            {"use_peft": False, "trainable": ["projector"], "l2_pretrained_coef": 0.1, "kl_coef": 0.0},
            ["keeps a copy of 2,112 pretrained numbers"],
        ),
    ],
)
def test_check_tells_how_it_trains_and_what_is_kept_for_that(
    settings: dict[str, Any],
    parts: list[str],
    model_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert outcome(model_folder, tmp_path, settings) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in [*parts, "rollout: 2 prompts x 2", "rewards of the first row"])


OFFLINE = {
    "algorithm": "rwl",
    "offline": True,
    "dataset_name": "mmft/scenes-rated-captions",
    "instruction": None,
    "max_train_rows": 16,
    "max_completion_length": 100,
}


def test_check_of_an_offline_recipe_looks_at_the_given_completions(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert outcome(model_folder, tmp_path, OFFLINE) == 0
    said = capsys.readouterr().out
    for part in (
        "completions: 16 of 2 prompts",
        "rewards: 0.000 to 1.000",
        "one pass: 4 optimizer steps",
        "of given completions",
        "scoring: packed",
        "no problems found",
    ):
        assert part in said
    assert "rollout:" not in said, "nothing is sampled in training"
    assert "got the same reward" not in said
    assert not (tmp_path / "run").exists()


def test_check_remarks_on_completions_that_are_cut_and_on_rewards_that_tell_nothing(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "rows.jsonl"
    words = ["a red circle and a blue square.", "a"]
    rows.write_text(
        "".join(json.dumps({"prompt": "Say.", "completion": text, "reward": 0.5}) + "\n" for text in words)
    )
    nothing = {"eval_split": None, "reward_funcs": [], "eval_funcs": [], "reward_weights": None}
    settings = OFFLINE | nothing | {"dataset_name": str(rows), "max_completion_length": 8}
    assert outcome(model_folder, tmp_path, settings) == 0
    said = capsys.readouterr().out
    assert "note: 1 of 2 completions are cut at `max_completion_length=8` tokens" in said
    assert "note: all rewards are the same: this is plain supervised training" in said


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"dataset_name": "mmft/scenes", "instruction": "Say."}, "`completion`"),
        ({"rename_columns": {"reward": "score"}}, "`reward`"),
        ({"reward_funcs": ["captionin"], "reward_weights": None}, "captionin"),
    ],
)
def test_check_finds_what_an_offline_recipe_misses(
    settings: dict[str, Any],
    problem: str,
    model_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert outcome(model_folder, tmp_path, OFFLINE | settings) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    assert problem in line
