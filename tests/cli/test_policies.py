"""A policy that only answers has nothing that training needs, whatever trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmft.cli.policies import AnsweringPolicy, for_answering
from mmft.engine.reward_calls import no_reward
from mmft.errors import ConfigError
from mmft.models.backbone import make_backbone
from mmft.trainers.ppo import PPOConfig
from tests import zoo
from tests.trainers.support import make_rows


@pytest.fixture
def policy(tmp_path: Path) -> AnsweringPolicy:
    args = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, kl_coef=0.1, l2_pretrained_coef=1.0, max_completion_length=4
    )
    backbone = make_backbone(zoo.build_model("llava"), zoo.build_processor("llava"), trainable=["language"])
    return AnsweringPolicy(backbone, [no_reward], for_answering(args), None, make_rows(2))


def test_it_keeps_no_critic_no_reference_and_no_copy_of_weights(policy: AnsweringPolicy):
    assert policy.actor_critic.value_head is None
    assert policy.actor_critic._frozen_copy == []
    assert policy.regularizer is None


def test_it_answers_every_row_and_judges_none_without_rewards(policy: AnsweringPolicy):
    means = policy.evaluate()
    assert [sample["row"] for sample in policy.eval_samples] == [0, 1]
    assert means["eval_completions/mean_length"] > 0
    assert "eval_reward" not in means
    assert "token_texts" not in policy.eval_samples[0], "an evaluation is about whole answers"


def test_it_cannot_be_trained(policy: AnsweringPolicy):
    nothing: Any = None
    with pytest.raises(ConfigError, match="this policy only answers; train it with the trainer of an"):
        policy.add_targets(nothing)
    with pytest.raises(ConfigError, match="this policy only answers"):
        policy.compute_policy_loss(nothing, nothing, nothing)
