"""A warm start and PPO on real pictures: emoji as a folder of transparent pictures with human names.

The pictures are not part of the project; without them the check is skipped. RESULTS.md has the numbers of
longer runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmft.cli import main

ROOT = Path(__file__).parents[2]
EMOJI = ROOT.parent / "shared" / "data" / "noto_emoji"

pytestmark = pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji pictures are not here")


@pytest.mark.slow
def test_ppo_after_a_warm_start_raises_the_validation_reward(tmp_path: Path):
    warm, trained = tmp_path / "sft", tmp_path / "ppo"
    rows = ["--dataset_data_dir", str(EMOJI), "--max_eval_rows", "48", "--use_cpu"]
    sft = [
        "--config",
        str(ROOT / "configs" / "emoji_sft.yaml"),
        "--max_steps",
        "80",
        "--max_train_rows",
        "300",
    ]
    sft += ["--completion_choice", "first", "--per_device_train_batch_size", "16", "--learning_rate", "1e-3"]
    assert main(["sft", *sft, *rows, "--output_dir", str(warm)]) == 0
    losses = json.loads((warm / "summary.json").read_text())
    assert losses["after"]["loss"] < 0.6 * losses["before"]["loss"]

    ppo = [
        "--config",
        str(ROOT / "configs" / "emoji_ppo.yaml"),
        "--max_steps",
        "24",
        "--max_train_rows",
        "300",
    ]
    assert main(["ppo", *ppo, *rows, "--model_name_or_path", str(warm), "--output_dir", str(trained)]) == 0
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["packed"]
    assert summary["after"]["reward"] > 1.1 * summary["before"]["reward"] > 0
