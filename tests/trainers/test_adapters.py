"""PPO on adapters of every method: they alone move, and come back to the bit from what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmft.engine.actor_critic import VLMActorCritic
from mmft.models.adapter_settings import METHODS
from mmft.models.adapters import adapter_config, load_adapter
from mmft.models.backbone import make_backbone
from mmft.models.freezing import is_adapter
from mmft.trainers.ppo import PPOConfig, PPOTrainer
from tests import zoo
from tests.engine.adapter_support import SIZES
from tests.trainers.support import (
    END_IDS,
    SETTINGS,
    make_rows,
    moved,
    step_rows,
    token_reward,
    trained_weights,
    without_cache,
)


def make_actor_critic(method: str, dropout: float = 0.0, seed: int = 0) -> VLMActorCritic:
    """Adapters behind and before the seam, so that pictures are encoded in the graph."""
    torch.manual_seed(seed)
    model = zoo.build_model("llava")
    config = adapter_config(model, method=method, parts=["language", "projector"], dropout=dropout, **SIZES)
    backbone = make_backbone(model, zoo.build_processor("llava"), peft_config=config)
    backbone.end_ids = END_IDS
    return VLMActorCritic(backbone)


def make_trainer(folder: Path, method: str, dropout: float = 0.0, **settings: Any) -> PPOTrainer:
    args = PPOConfig(output_dir=str(folder), **(SETTINGS | {"max_steps": 2} | settings))
    return PPOTrainer(make_actor_critic(method, dropout), token_reward, args, make_rows(16), None)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_moves_adapters_alone_and_what_it_saves_comes_back_to_the_bit(method: str, tmp_path: Path):
    trainer = make_trainer(tmp_path, method)
    actor_critic = trainer.actor_critic
    frozen = {name: p.clone() for name, p in actor_critic.named_parameters() if not p.requires_grad}
    before = trained_weights(trainer)
    trainer.train()
    after = trained_weights(trainer)
    assert moved(before, after) == before.keys()
    assert {name for name in before if not is_adapter(name)} == {"value_head.weight", "value_head.bias"}
    assert moved(frozen, dict(actor_critic.named_parameters())) == set()

    trainer.save_model(str(tmp_path / "saved"))
    fresh = make_actor_critic(method, seed=1)
    fresh.load_checkpoint(tmp_path / "saved")
    loaded = {name: p for name, p in fresh.named_parameters() if p.requires_grad}
    assert loaded.keys() == after.keys()
    assert moved(after, loaded) == set()
    alone = load_adapter(zoo.build_model("llava"), tmp_path / "saved")
    row = zoo.build_row("llava")
    assert torch.equal(alone(**row).logits, actor_critic.backbone.model.eval()(**row).logits)


@pytest.mark.parametrize("method", ["bottleneck", "ia3"])
def test_a_resumed_run_ends_with_the_same_bits(method: str, tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}  # rollouts of 4 steps
    dropout = 0.2 if method == "bottleneck" else 0.0
    whole = make_trainer(tmp_path / "whole", method, dropout, **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", method, dropout, **settings)
    with torch.no_grad():  # whatever the fresh trainer holds, the checkpoint counts
        for weight in resumed.actor_critic.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert moved(trained_weights(resumed), trained_weights(whole)) == set()
    assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))
