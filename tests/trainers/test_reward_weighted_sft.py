"""With all weights 1 it is supervised learning: transformers' own loss, the updates of TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.scoring import extend_inputs
from mmft.models.backbone import make_backbone
from mmft.trainers.experience import Experience
from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer
from mmft.trl_bridge import SFTConfig, SFTTrainer
from tests import zoo
from tests.trainers.support import make_rows, moved, trained_weights
from tests.trainers.test_reward_weighted import judged_rows, offline


def plain_likelihood(trainer: RewardWeightedTrainer, batches: list[Experience]) -> Tensor:
    """The mean loss per token of transformers, one row at a time through the unchanged model."""
    backbone, losses, tokens = trainer.actor_critic.backbone, [], 0
    for batch in batches:
        rows = [trainer.train_dataset[row] for row in batch.rows]
        for index, ids, length in zip(
            batch.completions.prompt_index.tolist(),
            batch.completions.ids,
            batch.completions.lengths.tolist(),
            strict=True,
        ):
            inputs = extend_inputs(backbone, trainer.collector.encoder.inputs(rows[index]), ids[:length])
            labels = inputs["input_ids"].clone()
            labels[:, :-length] = -100
            losses.append(backbone.model(**inputs, labels=labels).loss * length)
            tokens += length
    return sum(losses) / tokens


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_with_all_weights_one_it_is_supervised_likelihood(family: str, tmp_path: Path):
    rows = [row | {"reward": 1.0} for row in judged_rows()]
    trainer = offline(tmp_path, rows, family=family, lora=False, weighting="reward", num_mini_batches=1)
    trainer.actor_critic.backbone.forbidden_ids = frozenset()  # transformers counts placeholders too
    batches = [trainer._prepare_inputs({"micro_batch": 0})]
    loss = trainer.compute_loss(trainer.actor_critic, batches[0])
    loss.backward()
    weights = dict(trainer.actor_critic.named_parameters())
    gradients = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
    trainer.actor_critic.zero_grad()
    expected = plain_likelihood(trainer, [batch["batch"] for batch in batches])
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert len(gradients) > 5
    for name, gradient in gradients.items():
        error = (gradient - weights[name].grad).norm() / gradient.norm()
        # Matrix products round by the CPU's vector width: 2.3e-6 was seen.
        assert error <= 4e-6, f"{name}: relative error {float(error):.1e}"


# Updates are in proportion to gradients, so that they show a factor that AdamW would hide.
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 0.1,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": False,
    "activation_checkpointing": False,
    "logging_steps": 1,
}


def build() -> VLMActorCritic:
    torch.manual_seed(0)
    processor = zoo.build_processor("llava")
    # TRL also learns what the template puts behind the end token; no policy ever says that.
    processor.chat_template = processor.chat_template.replace(
        "{{ eos_token }}{% endif %}{{ '\\n' }}", "{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    )
    backbone = make_backbone(zoo.build_model("llava"), processor)
    backbone.forbidden_ids = frozenset()  # nor does TRL know what a policy cannot say
    return VLMActorCritic(backbone, critic=False, reference=False)


@pytest.mark.parametrize("num_generations", [1, 2])
def test_all_weights_one_make_the_update_of_a_supervised_trainer(num_generations: int, tmp_path: Path):
    rows = [
        row | {"completion": "abcdef"[: 2 + 3 * n + number % 2], "reward": 1.0}
        for number, row in enumerate(make_rows(4 // num_generations))
        for n in range(num_generations)
    ]
    ours = build()
    args = RewardWeightedConfig(
        str(tmp_path), offline=True, weighting="reward", num_generations=num_generations, **SETTINGS
    )
    trainer = RewardWeightedTrainer(ours, args=args, train_dataset=rows)
    before = trained_weights(trainer)
    trainer.train()
    table = Dataset.from_list(
        [
            {
                "images": [row["image"]],
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        ]
    )
    theirs = build()
    supervised = SFTTrainer(
        theirs.backbone.model,
        SFTConfig(str(tmp_path), max_length=None, **SETTINGS),
        train_dataset=table,
        processing_class=theirs.backbone.processor,
    )
    supervised.train()
    mine, expected = (
        [row["loss"] for row in each.state.log_history if "loss" in row] for each in (trainer, supervised)
    )
    assert mine == pytest.approx(expected, rel=1e-5)
    assert expected[0] - expected[2] > 0.1
    weights, other = trained_weights(trainer), dict(theirs.named_parameters())
    assert moved(before, weights) == before.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, other[name].detach(), rtol=0, atol=1e-6, msg=name)
