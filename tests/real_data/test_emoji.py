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
    rows = ["--dataset_data_dir", str(EMOJI), *"--max_train_rows 300 --max_eval_rows 48 --use_cpu".split()]
    recipe = ["sft", "--config", str(ROOT / "configs" / "emoji_sft.yaml"), "--output_dir", str(warm)]
    short = "--max_steps 240 --completion_choice first --per_device_train_batch_size 16 --learning_rate 2e-3"
    assert main([*recipe, *rows, *short.split()]) == 0
    losses = json.loads((warm / "summary.json").read_text())
    assert losses["after"]["loss"] < 0.6 * losses["before"]["loss"]

    recipe = ["ppo", "--config", str(ROOT / "configs" / "emoji_ppo.yaml"), "--output_dir", str(trained)]
    assert main([*recipe, *rows, "--max_steps", "80", "--model_name_or_path", str(warm)]) == 0
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["packed"]
    assert summary["after"]["reward"] > 1.05 * summary["before"]["reward"] > 0
