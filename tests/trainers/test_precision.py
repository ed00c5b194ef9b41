"""Mixed precision: everything that enters a ratio of probabilities comes from the same arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image

from mmft.trainers.ppo import PPOConfig, PPOTrainer
from tests import zoo


def count_a(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(completion[0]["content"].count("a")) for completion in completions]


def make_trainer(folder: Path, **settings: Any) -> PPOTrainer:
    rows = [
        {
            "image": Image.new("RGB", (32, 32), (40 * i, 90, 20)),
            "prompt": [{"role": "user", "content": "hi"}],
        }
        for i in range(4)
    ]
    args = PPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=8,
        num_generations=4,
        num_ppo_epochs=1,
        max_completion_length=6,
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model, processor = zoo.build_model("llava"), zoo.build_processor("llava")
    return PPOTrainer(model, count_a, args, rows, processing_class=processor, peft_config=lora)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_first_update_starts_from_a_ratio_of_one_in_every_precision(bf16: bool, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=bf16)
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "approx_kl" in row)
    assert logged["approx_kl"] < 1e-9  # half precision sampled, full precision scored: 1e-4 and more
    assert ("seconds/rescoring" in logged) == bf16
    assert logged["kl"] == pytest.approx(0, abs=1e-4)


def test_mixed_precision_reaches_the_sampler_and_its_verification(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True)
    seen: list[torch.dtype] = []
    layer = trainer.actor_critic.backbone.text_model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer.collect(0)
    assert set(seen) == {torch.bfloat16}
    assert trainer.collector.verification.packed
