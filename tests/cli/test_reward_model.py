"""`mmft reward-model` from a user's side: rows in, a reward out that `mmft ppo` takes by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mmft.cli import main
from mmft.engine.learned_reward import LearnedReward
from mmft.report.page_data import build_report
from mmft.tiny.preferences import make_preference
from tests.cli.support import lines

SETTINGS: dict[str, Any] = {
    "dataset_name": "mmft/scenes-preferences",
    "max_train_rows": 12,
    "eval_split": "validation",
    "max_eval_rows": 9,
    "group_column": "kind",
    "trainable": ["language"],
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "num_samples": 3,
    "seed": 3,
}
PREFERENCE_COLUMNS = {"chosen", "rejected", "margin"}


@pytest.fixture(scope="module")
def trained(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run on preferences that several tests look at."""
    folder = tmp_path_factory.mktemp("preferences")
    assert main(["reward-model", *config(folder, model_name_or_path=model_folder)]) == 0
    return folder / "run"


def config(folder: Path, **settings: Any) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"output_dir": str(folder / "run")} | settings))
    return ["--config", str(path)]


def rated_rows(folder: Path) -> Path:
    """Six sentences about two pictures each, labelled in words; one side of the pictures is named."""
    rows = []
    for number in range(12):
        file = folder / f"{number}.png"
        Image.new("RGB", (32, 32), (255, 0, 0) if number % 2 else (0, 0, 255)).save(file)
        rows.append(
            {
                "image": str(file),
                "sentence": f"it is {number // 2}",
                "label": "True" if number % 2 else "false",
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rating_settings(folder: Path, model_folder: str, **settings: Any) -> list[str]:
    data = {
        "dataset_name": str(rated_rows(folder)),
        "instruction": "Is it so?",
        "eval_split": None,
        "max_eval_rows": None,
        "held_out_share": 0.5,
        "split_column": "sentence",
        "group_column": None,
        "completion_column": "sentence",
        "rating_column": "label",
        "loss_type": "heteroscedastic",
        "mc_samples": 4,
        "model_name_or_path": model_folder,
    }
    return ["reward-model", *config(folder, **(data | settings))]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# Preferences


def test_a_run_leaves_a_reward_model_and_its_story(trained: Path):
    files = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "summary.json", "samples.jsonl", "metrics.jsonl", "README.md"} <= files
    assert {"reward_model.json", "reward_head.safetensors"} <= files
    summary = read(trained / "summary.json")
    assert summary["before"]["accuracy"] == 0.5, "a head of zeros prefers nothing"
    assert summary["before"]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert 0 <= summary["after"]["accuracy"] <= 1
    assert summary["after"]["loss"] != summary["before"]["loss"]
    assert (summary["steps"], summary["held_out_rows"], summary["packed"]) == (3, 9, True)
    assert summary["wall_seconds"] > 0
    assert summary["versions"]["mmft"]


def test_the_report_shows_pairs_with_their_pictures_and_what_was_told_right(trained: Path):
    data = build_report([trained])
    summary = read(trained / "summary.json")
    assert (data["kind"], data["answers"], len(data["samples"])) == (
        "reward_model",
        ["rejected", "chosen"],
        9,
    )
    assert all(sample["pictures"] for sample in data["samples"])
    assert data["columns"] == ["kind"]
    rows = {row["measure"]: row["cells"] for row in data["tables"][0]["rows"]}
    assert rows["accuracy"][2] == f"{summary['after']['accuracy']:.3f}"
    margins = [sample["answers"][1]["reward"] - sample["answers"][0]["reward"] for sample in data["samples"]]
    assert sum(margin > 0 for margin in margins) / 9 == pytest.approx(summary["after"]["accuracy"])
    assert data["tables"][1]["id"] == "groups"
    assert (trained / "report.html").is_file()


def test_groups_are_counted_and_add_up_to_the_whole(trained: Path):
    summary = read(trained / "summary.json")
    groups = summary["groups"]
    kinds = [make_preference("validation", index).kind for index in range(9)]
    assert {name: group["rows"] for name, group in groups.items()} == {k: kinds.count(k) for k in set(kinds)}
    right = sum(group["rows"] * group["after"] for group in groups.values())
    assert right / 9 == pytest.approx(summary["after"]["accuracy"])


def test_samples_hold_the_row_and_what_was_made_of_it(trained: Path):
    samples = lines(trained / "samples.jsonl")
    assert len(samples) == 9
    for index, sample in enumerate(samples):
        row = make_preference("validation", index)
        assert sample["key"] == ["validation", index]
        assert (sample["chosen"], sample["rejected"], sample["kind"]) == (row.chosen, row.rejected, row.kind)
        assert sample["before"]["chosen_reward"] == 0
        assert PREFERENCE_COLUMNS.isdisjoint(sample["after"])
    judged = [sample["after"]["chosen_reward"] > sample["after"]["rejected_reward"] for sample in samples]
    assert sum(judged) / 9 == pytest.approx(read(trained / "summary.json")["after"]["accuracy"])


def test_the_reward_by_path_gives_the_numbers_of_the_samples(trained: Path):
    samples = lines(trained / "samples.jsonl")
    reward = LearnedReward(trained, mc_samples=0)
    given = reward(
        prompts=[sample["prompt"] for sample in samples],
        completions=[sample["chosen"] for sample in samples],
        images=[[make_preference("validation", index).scene.image] for index in range(9)],
    )
    assert given == pytest.approx([sample["after"]["chosen_reward"] for sample in samples], abs=1e-4)


def test_the_card_says_what_was_learned_and_how_to_use_it(trained: Path):
    card = (trained / "README.md").read_text()
    assert "trained by mmft on preferences of `mmft/scenes-preferences`" in card
    assert "| accuracy | 0.500 |" in card
    assert "| kind | rows | accuracy before | after |" in card
    assert f"{{name: reward_model, path: {trained}, penalty: 1.0}}" in card


def test_the_written_config_repeats_the_run(trained: Path, tmp_path: Path):
    again = ["--config", str(trained / "config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(["reward-model", *again]) == 0
    assert read(tmp_path / "again" / "summary.json")["after"] == read(trained / "summary.json")["after"]


def test_the_terminal_shows_right_and_wrong_rows(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["reward-model", *config(tmp_path, model_name_or_path=model_folder)]) == 0
    said = capsys.readouterr().out
    assert "12 training rows, 9 held out" in said
    assert "told right:" in said or "told wrong:" in said
    assert "by kind" in said
    assert f"{{name: reward_model, path: {tmp_path / 'run'}, penalty: 1.0}}" in said
    shown = [line for line in said.splitlines() if line.startswith("  chosen ")]
    assert len(shown) == 3


def test_ppo_takes_the_reward_by_its_path(trained: Path, model_folder: str, tmp_path: Path):
    settings = {
        "model_name_or_path": model_folder,
        "dataset_name": "mmft/scenes",
        "instruction": "Describe the picture.",
        "max_train_rows": 4,
        "eval_split": "validation",
        "max_eval_rows": 2,
        "reward_funcs": [{"name": "reward_model", "path": str(trained), "penalty": 0.5}],
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 1,
        "max_completion_length": 4,
        "max_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "output_dir": str(tmp_path / "ppo"),
    }
    path = tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert main(["ppo", "--config", str(path)]) == 0
    summary = read(tmp_path / "ppo" / "summary.json")
    assert summary["unjudged_share"] == 0
    assert summary["after"]["reward"] != 0


# Ratings


def test_words_become_ratings_and_a_sentence_stays_on_one_side(model_folder: str, tmp_path: Path):
    assert main(rating_settings(tmp_path, model_folder)) == 0
    summary, samples = read(tmp_path / "run" / "summary.json"), lines(tmp_path / "run" / "samples.jsonl")
    # half of the sentences, each with both of its pictures
    assert summary["held_out_rows"] == len(samples) == 6
    assert sorted(sample["completion"] for sample in samples) == sorted(
        2 * list({sample["completion"] for sample in samples})
    )
    assert {sample["rating"] for sample in samples} == {0.0, 1.0}
    assert summary["before"]["majority_share"] == summary["after"]["majority_share"] == 0.5
    assert {"accuracy", "auc", "mse", "nll", "calibration_error", "aurc"} <= summary["after"].keys()
    assert all(sample["after"]["epistemic"] > 0 and sample["after"]["aleatoric"] > 0 for sample in samples)
    assert "on ratings of" in (tmp_path / "run" / "README.md").read_text()


def test_shares_of_true_facts_are_ratings_too(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"dataset_name": "mmft/scenes-ratings", "loss_type": "mse", "model_name_or_path": model_folder}
    assert main(["reward-model", *config(tmp_path, **settings)]) == 0
    summary = read(tmp_path / "run" / "summary.json")
    assert "auc" not in summary["after"], "shares are not true or false"
    squares = sum(group["rows"] * group["after"] for group in summary["groups"].values())
    assert squares / 9 == pytest.approx(summary["after"]["mse"], rel=1e-4)
    assert "nearest half:" in capsys.readouterr().out


def test_a_model_without_a_variance_is_not_advised_a_penalty(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["reward-model", *config(tmp_path, model_name_or_path=model_folder, dropout=0.0)]) == 0
    entry = f"{{name: reward_model, path: {tmp_path / 'run'}}}"
    card = (tmp_path / "run" / "README.md").read_text()
    assert entry in capsys.readouterr().out
    assert entry in card
    assert "penalty" not in card


def test_a_run_without_held_out_rows_trains_and_says_so(model_folder: str, tmp_path: Path):
    settings = {"eval_split": None, "max_eval_rows": None, "group_column": None}
    assert main(["reward-model", *config(tmp_path, model_name_or_path=model_folder, **settings)]) == 0
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["before"] is None
    assert summary["after"] is None
    assert (tmp_path / "run" / "reward_head.safetensors").is_file()


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chosen_column": "better"}, "`chosen_column` 'better' is no column of the split 'train'; it has"),
        ({"loss_type": "mse"}, "`completion_column` 'completion' is no column"),
        ({"chosen_column": "kind"}, "`chosen_column` is 'kind', but the split 'train' has a column 'chosen'"),
        ({"held_out_share": 0.5}, "`eval_split` 'validation' and `held_out_share` 0.5 exclude each other"),
        ({"eval_split": None, "held_out_share": 1.5}, "`held_out_share` must be between 0 and 1; got 1.5"),
        ({"eval_split": None, "held_out_share": 0.01}, "0.01 of 12 rows is 0; both sides need at least one"),
        ({"eval_split": None, "split_column": "kind"}, "`split_column` is 'kind'; set `held_out_share`"),
        (
            {"eval_split": None, "held_out_share": 0.5, "split_column": "sort"},
            "`split_column` 'sort' is no column of the rows",
        ),
        ({"group_column": "sort"}, "`group_column` 'sort' is no column of the held-out rows"),
        ({"num_samples": -1}, "`num_samples` must be >= 0; got -1"),
        ({"loss_type": "hinge"}, "`loss_type` must be one of bradley_terry, mse, heteroscedastic"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # Found before a model is loaded: there is none of that name.
    assert main(["reward-model", *config(tmp_path, model_name_or_path="no/such", **settings)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_rating_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = rating_settings(tmp_path, "no/such", rating_column="image", split_column=None)
    assert main(argv) == 2
    assert "a rating is a number, true or false" in capsys.readouterr().err


def test_the_help_lists_the_fields(capsys: pytest.CaptureFixture[str]):
    assert main(["reward-model", "--help"]) == 0
    said = capsys.readouterr().out
    for field in ("loss_type", "chosen_column", "rating_column", "held_out_share", "mc_samples", "lora_r"):
        assert f"\n  {field} " in said
