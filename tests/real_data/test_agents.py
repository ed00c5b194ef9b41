"""Agents on data and environments made by others: NLVR as an environment of one step, and MiniGrid.

The pictures of NLVR are not part of the project; without them its check is skipped.
RESULTS.md tells of longer runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmft.cli import main

ROOT = Path(__file__).parents[2]
NLVR = ROOT.parent / "shared" / "data" / "nlvr"


def run(name: str, folder: Path, *settings: str) -> dict[str, Any]:
    """The summary of a short run of a recipe."""
    recipe = ["dqn", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--output_dir", str(folder)]
    assert main([*recipe, "--use_cpu", "--num_samples", "1", *settings]) == 0
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.skipif(not NLVR.is_dir(), reason="the NLVR pictures are not here")
def test_an_agent_says_whether_sentences_are_true_of_pictures(tmp_path: Path):
    arguments = {
        "dataset_name": "imagefolder",
        "data_dir": str(NLVR),
        "held_out_share": 0.2,
        "group_column": "sentence",
    }
    short = "--total_timesteps 400 --learning_starts 200 --eval_episodes 64 --num_envs 4".split()
    summary = run("nlvr_dqn", tmp_path / "run", "--env_kwargs", json.dumps(arguments), *short)
    episodes = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert episodes
    assert summary["actions"] == ["false", "true"]
    # Every episode is one answer, right or wrong.
    assert summary["after"]["episode_length"] == 1
    assert 0 <= summary["after"]["return"] == summary["after"]["success"] <= 1
    assert set(summary["blanked"]) == {"image", "text"}


@pytest.mark.slow
def test_an_agent_walks_in_minigrid(tmp_path: Path):
    short = "--total_timesteps 600 --learning_starts 400 --eval_episodes 8 --num_envs 4".split()
    summary = run("minigrid_dqn", tmp_path / "run", *short)
    assert len(summary["actions"]) == 7
    assert summary["feature_widths"]["numbers"] == 4  # one for each direction
    assert 0 <= summary["after"]["return"] < 1
    assert (tmp_path / "run" / "episode.gif").is_file()
