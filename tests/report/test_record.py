"""Records of a run: comparison, pairing, JSON without NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmft.report.record import (
    Change,
    Evaluation,
    compare,
    masked_samples,
    paired_samples,
    plain,
    read_json_lines,
    spread,
    versions,
    write_json,
    write_json_lines,
)


def evaluation(reward: float, **means: float) -> Evaluation:
    metrics = {"eval_reward": reward, "epoch": 1.0} | {f"eval_{name}": mean for name, mean in means.items()}
    samples = [{"row": row, "completion": f"c{row}", "reward": reward} for row in (0, 1)]
    return Evaluation.from_metrics(metrics, samples)


def test_only_what_evaluation_measured_is_kept():
    assert evaluation(0.5).means == {"reward": 0.5}


def test_samples_that_a_reward_failed_on_are_counted_apart_from_the_means():
    found = evaluation(0.5, **{"rewards/judge/masked": 3.0, "rewards/judge": 0.25})
    assert found.means == {"reward": 0.5, "rewards/judge": 0.25}
    assert found.masked == {"judge": 3}


def test_masked_samples_add_up_over_log_lines():
    lines = [
        {"loss": 0.1, "rewards/judge/masked": 2.0, "rewards/judge": 0.5},
        {"loss": 0.1},
        {"rewards/judge/masked": 3.0, "rewards/a/b/masked": 1.0, "eval_rewards/judge/masked": 9.0},
    ]
    assert masked_samples(lines) == {"judge": 5, "a/b": 1}


def test_a_reward_that_is_the_total_is_said_once():
    before = Evaluation({"reward": 0.1, "rewards/captioning": 0.1000001, "rewards/captioning/bleu": 0.3}, [])
    after = Evaluation({"reward": 0.2, "rewards/captioning": 0.2, "rewards/captioning/bleu": 0.4}, [])
    assert [change.label for change in compare(before, after)] == ["total reward", "captioning/bleu"]


def test_a_measure_that_only_one_side_has_is_left_out():
    before, after = Evaluation({"reward": 0.1, "rewards/x": 0.5}, []), Evaluation({"reward": 0.2}, [])
    assert compare(before, after) == [Change("reward", 0.1, 0.2)]


@pytest.mark.parametrize(
    ("before", "after", "relative"), [(0.5, 0.75, 0.5), (-0.5, 0.0, 1.0), (0.0, 1.0, None)]
)
def test_the_relative_change_is_by_the_size_of_before(before: float, after: float, relative: float | None):
    assert Change("reward", before, after).relative == relative


def test_samples_are_paired_by_row_whatever_their_order():
    before = Evaluation({}, [{"row": 1, "completion": "b1"}, {"row": 0, "completion": "b0"}])
    after = Evaluation({}, [{"row": 0, "completion": "a0"}, {"row": 1, "completion": "a1"}])
    rows = [{"key": ("validation", 0)}, {"key": ("validation", 1)}]
    assert paired_samples(rows, before, after) == [
        {"key": ("validation", row), "before": {"completion": f"b{row}"}, "after": {"completion": f"a{row}"}}
        for row in (0, 1)
    ]


@pytest.mark.parametrize(
    ("count", "total", "places"), [(2, 10, [0, 5]), (5, 3, [0, 1, 2]), (0, 4, []), (3, 0, [])]
)
def test_samples_are_spread_over_the_rows(count: int, total: int, places: list[int]):
    assert spread(count, total) == places


def test_what_json_lacks_becomes_null_or_text(tmp_path: Path):
    record = {"nan": math.nan, "inf": [math.inf, 1.0], "key": ("train", 3), "path": tmp_path, 4: True}
    assert plain(record) == {
        "nan": None, "inf": [None, 1.0], "key": ["train", 3], "path": str(tmp_path), "4": True,
    }  # fmt: skip
    write_json(tmp_path / "a" / "b.json", record)
    assert json.loads((tmp_path / "a" / "b.json").read_text())["nan"] is None


def test_a_dataclass_becomes_a_mapping_of_its_fields():
    assert plain([Change("reward", 0.5, math.nan)]) == [{"name": "reward", "before": 0.5, "after": None}]


def test_lines_are_read_as_written_and_no_file_is_no_lines(tmp_path: Path):
    records = [{"a": 1, "text": "größer\nzwei Zeilen"}, {"a": 2}]
    write_json_lines(tmp_path / "x.jsonl", records)
    assert read_json_lines(tmp_path / "x.jsonl") == records
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_the_versions_name_what_decides_a_run():
    assert set(versions()) == {
        "python", "mmft", "torch", "transformers", "trl", "peft", "accelerate", "datasets",
    }  # fmt: skip
