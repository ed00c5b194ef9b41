"""A run that was pushed comes back: by plain PEFT, and whole by mmft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmft.engine.actor_critic import VLMActorCritic
from mmft.hub import push
from mmft.models.adapters import adapter_config
from mmft.models.backbone import load_backbone
from mmft.runs import Run
from tests.hub.pull import answers_of, logps_of
from tests.hub.server import TOKEN, Hub

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # PEFT compares vocabularies with the base model's config on the hub, where the packaged one is not.
    pytest.mark.filterwarnings("ignore:Could not find a config file in mmft/:UserWarning"),
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A policy whose every trained weight differs from where training would begin."""
    folder = tmp_path / "run"
    name = "mmft/tiny-captioner"
    backbone = load_backbone(name, trainable=(), dtype="float32")
    config = adapter_config(backbone.base, r=2, alpha=4)
    policy = VLMActorCritic(load_backbone(name, peft_config=config, dtype="float32"), reference=False)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    policy.backbone.model.peft_config["default"].base_model_name_or_path = name
    policy.save_pretrained(folder)
    settings = {
        "algorithm": "ppo",
        "dataset_name": "mmft/scenes",
        "model_name_or_path": name,
        "instruction": "Describe the picture.",
        "reward_funcs": ["bleu", {"name": "captioning", "alpha": 2.0}],
        "reward_weights": [0.5, 1.0],
        "eval_funcs": ["repetition"],
        "max_completion_length": 8,
        "output_dir": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def pulled(hub: Hub, repo: str, home: Path, token: str | None = TOKEN) -> dict[str, Any]:
    """What a process on another machine would find."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | ({"HF_TOKEN": token} if token else {})
    command = [sys.executable, "-m", "tests.hub.pull", repo]
    told = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


def test_adapter_critic_rewards_and_prompt_come_back_from_the_hub(hub: Hub, run_folder: Path, tmp_path: Path):
    plan = push(run_folder, "mine", private=True, endpoint=hub.url)
    home = tmp_path / "home"
    home.mkdir()
    found = pulled(hub, plan.repo_id, home)
    run = Run.from_pretrained(run_folder)
    policy = run.load_policy()
    expected = logps_of(policy.backbone.model, policy.backbone.processor)
    assert found["peft"] == pytest.approx(expected, abs=1e-5)
    assert found["knows_mmft"] is False
    assert (found["name"], found["kind"]) == ("mine", "policy")
    (here,), (there,) = answers_of(run), found["answers"]
    assert there["text"] == here["text"]
    assert there["logps"] == pytest.approx(here["logps"], abs=1e-5)
    assert there["values"] == pytest.approx(here["values"], abs=1e-5)
    assert max(map(abs, here["values"])) > 1e-3, "the critic was restored, not made anew"
    assert there["rewards"] == pytest.approx(here["rewards"], abs=1e-6)
    assert set(here["rewards"]) >= {"bleu_reward", "captioning", "repetition"}
    base = run.load_base().backbone
    assert expected != pytest.approx(logps_of(base.model, base.processor), abs=1e-2)
