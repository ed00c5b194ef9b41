"""A reward model on sentences that people wrote about pictures, labelled true or false.

The pictures are not part of the project; without them the check is skipped. RESULTS.md has the numbers of a
longer run, and what to believe of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmft.cli import main

ROOT = Path(__file__).parents[2]
NLVR = ROOT.parent / "shared" / "data" / "nlvr"

pytestmark = pytest.mark.skipif(not NLVR.is_dir(), reason="the NLVR pictures are not here")


@pytest.mark.slow
def test_a_reward_model_reads_labelled_sentences_as_they_come(tmp_path: Path):
    recipe = ["reward-model", "--config", str(ROOT / "configs" / "nlvr_reward_model.yaml")]
    short = "--max_train_rows 400 --max_steps 12 --warmup_steps 0 --use_cpu".split()
    folder = tmp_path / "run"
    assert main([*recipe, *short, "--dataset_data_dir", str(NLVR), "--output_dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert summary["packed"]
    assert summary["held_out_rows"] == len(samples)
    # Labels arrive as 1 and 0, and no sentence of the held-out rows was trained on.
    labels = {}
    for line in (NLVR / "train" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        labels.setdefault(row["sentence"], []).append(float(row["label"] == "true"))
    for sample in samples:
        assert sample["rating"] in labels[sample["completion"]]
    assert {sample["rating"] for sample in samples} == {0.0, 1.0}
    # So short a run learns the share of true sentences and its spread; it need not beat the majority.
    assert summary["after"]["mse"] < 0.3
    assert summary["after"]["calibration_error"] < 0.4
    assert 0.3 < summary["after"]["auc"] < 0.8
