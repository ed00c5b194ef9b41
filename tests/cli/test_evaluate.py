"""`mmft evaluate`: what it measures, compares and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmft.cli import main
from mmft.cli.arguments import parse_run
from mmft.cli.evaluate import ready_rewards
from mmft.cli.evaluate_inputs import NO_GROUP, group_columns
from mmft.data.rows import PromptDataset
from mmft.engine.judging import RewardSuite
from mmft.evaluation.settings import EvaluationSettings
from tests.cli.support import SETTINGS, refusal, summary, write_config

ROWS = 12
RECIPES = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with references, a group, a human rating and a column of something else."""
    folder = tmp_path_factory.mktemp("rated")
    colours = ("red", "green", "blue")
    records = [
        {
            "image": str(picture(folder, index)),
            "prompt": "What is this?",
            "references": [f"a {colours[index % 3]} square.", f"{colours[index % 3]}."],
            "colour": colours[index % 3],
            "human_rating": None if index == 5 else index / ROWS,
        }
        for index in range(ROWS)
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def picture(folder: Path, index: int) -> Path:
    import numpy as np
    from PIL import Image

    path = folder / f"{index}.png"
    pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def evaluate(run_folder: Path, rated: Path, tmp_path: Path):
    """Runs the command on the rated rows under changed settings, and reads what it wrote."""

    def command(**changes: Any) -> list[str]:
        settings = yaml.safe_load((run_folder / "config.yaml").read_text())
        settings |= {
            "dataset_name": str(rated),
            "eval_split": "train",
            "instruction": None,
            "max_eval_rows": None,
            "reward_funcs": [],
            "eval_funcs": [],
            "reward_weights": None,
            "num_resamples": 100,
            "num_samples": 1,
            "max_completion_length": 4,
            "output_dir": str(tmp_path / "evaluation"),
            "seed": 0,
        }
        return ["evaluate", "--config", write_config(tmp_path, settings | changes)]

    return command


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())


def test_it_finds_the_scores_that_the_run_ended_with(
    run_folder: Path, model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "scores.json"
    argv = ["evaluate", "--config", str(run_folder / "config.yaml"), "--output_file", str(target)]
    assert main([*argv, "--adapter_path", str(run_folder)]) == 0
    assert "total reward" in capsys.readouterr().out
    with_adapter = json.loads(target.read_text())
    assert with_adapter["means"] == pytest.approx(summary(run_folder)["after"], abs=1e-6)
    assert with_adapter["adapter"] == str(run_folder)
    assert with_adapter["settings"]["seed"] == 3
    assert len(with_adapter["samples"]) == with_adapter["rows"] == 3
    # A folder with nothing but an adapter names its own base.
    assert main([*argv, "--model_name_or_path", str(run_folder)]) == 0
    assert json.loads(target.read_text())["means"] == with_adapter["means"]
    assert json.loads(target.read_text())["model"] == model_folder
    assert main(argv) == 0
    assert json.loads(target.read_text())["means"] == pytest.approx(summary(run_folder)["before"], abs=1e-6)


def test_metrics_alone_are_enough_and_carry_their_signatures(
    evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = evaluate(metrics=["rouge_l", {"name": "bleu", "smoothing": "exp"}])
    assert main(argv) == 0
    found, said = result(tmp_path), capsys.readouterr().out
    assert "reward" not in found["means"]
    assert set(found["means"]) >= {"metrics/rouge_l", "metrics/bleu_1", "metrics/bleu_4"}
    assert "smooth:exp" in found["signatures"]["bleu"]
    assert found["signatures"]["rouge_l"] in said
    mean = sum(sample["metrics"]["rouge_l"] for sample in found["samples"]) / ROWS
    assert found["means"]["metrics/rouge_l"] == pytest.approx(mean)
    interval = found["intervals"]["metrics/bleu_1"]
    assert interval["low"] <= found["means"]["metrics/bleu_1"] <= interval["high"]


def test_every_measure_comes_by_group(evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = evaluate(reward_funcs=["tests.reference.rewards:byte_variety"], metrics=["bleu"], by="colour")
    assert main(argv) == 0
    found = result(tmp_path)["subgroups"]["colour"]
    assert set(found) >= {"reward", "metrics/bleu_1", "completions/mean_length"}
    groups = found["reward"]["groups"]
    assert [group["name"] for group in groups] == ["red", "green", "blue"]
    assert all(group["mean"]["count"] == 4 and group["is_small"] for group in groups)
    mean = sum(group["mean"]["value"] for group in groups) / 3
    assert mean == pytest.approx(result(tmp_path)["means"]["reward"])
    said = capsys.readouterr().out
    assert "red *" in said
    assert "no gap: fewer than two groups have enough rows" in said


def test_measures_are_correlated_with_a_column_of_numbers(
    evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = evaluate(reward_funcs=["tests.reference.rewards:small_ids"], correlate_with=["human_rating"])
    assert main([*argv, "--eval_temperature", "1.0"]) == 0
    found = result(tmp_path)["correlations"]["human_rating"]["reward"]
    assert found["pearson"]["count"] == ROWS - 1
    assert found["pearson"]["left_out"] == 1
    assert -1 <= found["kendall"]["value"] <= 1
    assert "with human_rating" in capsys.readouterr().out


def test_completions_are_correlated_with_what_the_model_sees(
    evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = evaluate(metrics=["rouge_l"], correlate_state=True)
    assert main(argv) == 0
    found = result(tmp_path)["state"]
    likely = found["mean log-prob of a token"]
    assert likely["count"] == ROWS
    assert len(likely["components"]) == len(likely["explained"]) == 2  # one per five rows
    assert 0 < likely["multiple"] <= 1
    assert "adjusted" in capsys.readouterr().out


def test_an_adapter_is_compared_with_its_base_on_the_same_rows(
    evaluate, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"reward_funcs": ["tests.reference.rewards:byte_variety"], "metrics": ["bleu"]}
    settings |= {"eval_temperature": 1.0, "adapter_path": str(run_folder)}
    assert main(evaluate(**settings, compare_with="base")) == 0
    compared, said = result(tmp_path), capsys.readouterr().out
    page = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert "| total reward |" in page
    assert str(run_folder) in page
    measures = compared["comparison"]["measures"]
    assert measures["reward"]["second"] == pytest.approx(compared["means"]["reward"])
    assert measures["metrics/bleu_1"]["second"] == pytest.approx(compared["means"]["metrics/bleu_1"])
    assert measures["reward"]["wins"] + measures["reward"]["ties"] + measures["reward"][
        "losses"
    ] == pytest.approx(1)
    assert "same rows" in said
    # The base alone says the same as the base in the comparison: same rows, same noise.
    assert main(evaluate(**settings | {"adapter_path": None})) == 0
    alone = result(tmp_path)
    assert measures["reward"]["first"] == pytest.approx(alone["means"]["reward"], abs=1e-6)
    assert alone["comparison"] is None


def test_a_run_is_compared_with_a_folder_and_with_a_file(evaluate, run_folder: Path, tmp_path: Path):
    settings = {"reward_funcs": ["tests.reference.rewards:byte_variety"], "metrics": ["cider_d"]}
    saved = tmp_path / "adapter.json"
    assert main([*evaluate(**settings, adapter_path=str(run_folder)), "--output_file", str(saved)]) == 0
    by_folder = evaluate(**settings, compare_with=str(run_folder))
    assert main(by_folder) == 0
    first = result(tmp_path)["comparison"]
    assert first["label"] == run_folder.name
    assert main(evaluate(**settings, compare_with=str(saved))) == 0
    second = result(tmp_path)["comparison"]
    assert second["label"] == "adapter"
    assert second["measures"] == first["measures"]
    assert second["notes"] == []
    assert main(evaluate(**settings, compare_with=str(saved), seed=1)) == 0
    assert result(tmp_path)["comparison"]["notes"] == ["`seed` is 1 here and 0 there."]


def test_a_file_about_other_rows_is_refused(evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    saved = tmp_path / "saved.json"
    assert main([*evaluate(metrics=["rouge_l"]), "--output_file", str(saved)]) == 0
    record = json.loads(saved.read_text())
    capsys.readouterr()
    few = evaluate(metrics=["rouge_l"], max_eval_rows=10, compare_with=str(saved))
    assert main(few) == 2
    assert f"only {saved} has row ('train', 10), ('train', 11)" in capsys.readouterr().err
    record["samples"][3]["references"] = ["something else"]
    saved.write_text(json.dumps(record))
    assert main(evaluate(metrics=["rouge_l"], compare_with=str(saved))) == 2
    assert "row ('train', 3) has another prompt or other references" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "`reward_funcs`, `eval_funcs` and `metrics` are all empty"),
        ({"by": ["color"]}, "names 'color', which the split 'train' does not have. Did you mean 'colour'?"),
        ({"by": ["references"]}, "`by: references`: row 0 of 'train' holds ['a red square.', 'red.']"),
        ({"correlate_with": ["human_ratin"]}, "Did you mean 'human_rating'?"),
        ({"correlate_with": ["colour"]}, "`correlate_with: colour`: row 0 of 'train' holds 'red', which"),
        ({"metrics": ["rouge"]}, "`metrics` names 'rouge', which is none. Did you mean 'rouge_l'?"),
        ({"metrics": [{"name": "bleu", "smoothin": "exp"}]}, "'smoothin'. Did you mean 'smoothing'?"),
        ({"metrics": [{"name": "bleu", "tokenize": "14a"}]}, "`metrics`: bleu: `tokenize` must be"),
        ({"metrics": [{"name": "cider_d", "document_frequencies": "no.json"}]}, "No such file or directory"),
        ({"output_file": str(RECIPES)}, "configs' is a folder; name a file in it"),
        ({"compare_with": str(RECIPES / "quickstart.yaml")}, "configs/quickstart.yaml is no JSON"),
        ({"compare_with": "base"}, "`compare_with: base` leaves the adapter out"),
        ({"compare_with": "bse"}, "`compare_with` 'bse' is no file or folder. Did you mean 'base'?"),
        ({"confidence_level": 95}, "`confidence_level` must lie between 0 and 1; got 95"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line_before_a_model_is_loaded(
    changes: dict[str, Any], message: str, evaluate, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr("mmft.cli.evaluate.load_policy", lambda *args, **kwargs: pytest.fail("loaded"))
    settings = {"metrics": ["rouge_l"]} | changes if changes else {}
    assert message in refusal(capsys, evaluate(**settings))


def test_a_folder_without_weights_and_the_run_itself_are_no_comparison(
    evaluate, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"metrics": ["rouge_l"], "adapter_path": str(run_folder)}
    said = refusal(capsys, evaluate(**settings, compare_with=str(tmp_path)))
    assert "holds neither an adapter_config.json nor a config.json" in said
    said = refusal(capsys, evaluate(**settings, compare_with=str(run_folder)))
    assert "is what is evaluated" in said
    summary_file = str(run_folder / "summary.json")
    assert main(evaluate(**settings, compare_with=summary_file)) == 2
    assert "is no evaluation.json of `mmft evaluate`" in capsys.readouterr().err


def test_rewards_are_judged_by_what_they_learned_from_the_training_rows(evaluate, tmp_path: Path):
    """CIDEr-D as a reward wants document frequencies of the training rows; the metric counts its own."""
    argv = evaluate(reward_funcs=["cider_d"], metrics=["cider_d"])
    assert main(argv) == 0
    found = result(tmp_path)
    # Training and held-out rows are the same here.
    assert found["means"]["reward"] == pytest.approx(found["means"]["metrics/cider_d"], abs=1e-5)


class Remembering:
    """A reward that wants to see the training rows, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        return [0.0] * len(completions)

    def prepare(self, column: Any) -> None:
        if self.seen is None:
            self.seen = column("caption")

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_rewards_get_the_state_of_the_run_and_else_the_training_rows(model_folder: str, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    settings = SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(tmp_path / "run")}
    settings |= {"adapter_path": str(tmp_path), "max_train_rows": 2}
    config = parse_run("evaluate", ["--config", write_config(tmp_path, settings)])
    fresh, restored = Remembering(), Remembering()
    ready_rewards(config, RewardSuite(fresh, names=["remembering"]))
    assert fresh.seen is not None
    assert len(fresh.seen) == 2
    (tmp_path / "rewards.json").write_text(json.dumps({"remembering": {"seen": ["of the run"]}}))
    ready_rewards(config, RewardSuite(restored, names=["remembering"]))
    assert restored.seen == ["of the run"]


@pytest.mark.parametrize(
    "samples", [5, {"a": 1}, [], [1, 2], [{}], [{"key": 3}], [{"completion": None}], [{"rewards": None}]]
)
def test_a_file_of_another_kind_is_no_answer_to_compare_with(
    samples: Any, evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr("mmft.cli.evaluate.load_policy", lambda *args, **kwargs: pytest.fail("loaded"))
    whole = {"key": ["train", 0], "completion": "", "tokens": 1, "ended": True, "reward": 1, "rewards": {}}
    if isinstance(samples, list) and samples and samples[0]:
        samples = [whole | each if isinstance(each, dict) else each for each in samples]
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"samples": samples}))
    said = refusal(capsys, evaluate(metrics=["rouge_l"], compare_with=str(path)))
    assert "is no evaluation.json of `mmft evaluate`" in said


def test_rows_without_a_group_are_one_group():
    rows = PromptDataset([{"prompt": "?", "size": size} for size in (1.5, math.nan, None, math.nan)])
    settings = EvaluationSettings(by=["size"])
    assert group_columns(settings, rows) == {"size": [1.5, NO_GROUP, NO_GROUP, NO_GROUP]}
