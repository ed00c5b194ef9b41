"""What two processes do in `test_agent_two_processes.py`; started by torchrun, one folder per scenario."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from mmft.models.modalities import Modalities
from mmft.trainers.dqn import DQNConfig, DQNTrainer
from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer
from tests.trainers.agent_support import agent_weights, make_agent_trainer, unlucky_counter
from tests.trainers.support import step_rows

DQN, PPO = (DQNTrainer, DQNConfig), (AgentPPOTrainer, AgentPPOConfig)
# Not clipped, so that gradients can be compared.
BASE: dict[str, Any] = {"max_grad_norm": 1e6, "max_env_restarts": 100, "eval_episodes": 5}
SCENARIOS: dict[str, tuple[Any, dict[str, Any]]] = {
    # With this seed the environments of one process fail more often than those of the other.
    "dqn": (
        DQN,
        {"total_timesteps": 96, "env": unlucky_counter, "seed": 3, "save_strategy": "steps", "save_steps": 2},
    ),
    "dqn lora": (DQN, {"total_timesteps": 64, "lora": True}),
    "ppo": (PPO, {"total_timesteps": 96, "pca_components": 4, "env": unlucky_counter}),
    "ppo lora": (
        PPO,
        {"total_timesteps": 32, "lora": True, "num_mini_batches": 1, "gradient_accumulation_steps": 2},
    ),
}


def scenario(name: str, folder: Path, **settings: Any) -> Any:
    """The trainer of a scenario."""
    kind, own = SCENARIOS[name]
    return make_agent_trainer(folder, *kind, **(BASE | own | settings))


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step, averaged over the processes."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.kept = trainer, {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            named = self.trainer.agent.named_parameters()
            self.kept = {name: p.grad.clone() for name, p in named if p.grad is not None}


class Watched:
    """A trainer, and what it did first."""

    def __init__(self, name: str, folder: Path) -> None:
        self.trainer = scenario(name, folder)
        self.start = agent_weights(self.trainer)
        self.gradients = FirstGradients(self.trainer)
        self.trainer.add_callback(self.gradients)
        self.warm_up: dict[str, Tensor] = {}
        self.batches: dict[str, Tensor] = {}
        fit, compute = self.trainer.fit_transforms, self.trainer.compute_loss

        def watch_fit(chunks: list[Modalities]) -> None:
            self.warm_up = {"rows": Modalities.cat(chunks).embeddings["fused"][:, 0].detach().clone()}
            fit(chunks)

        def watch_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            if self.trainer.state.global_step == 0:
                self.keep(inputs)
            return compute(model, inputs, *args, **kwargs)

        self.trainer.fit_transforms, self.trainer.compute_loss = watch_fit, watch_loss

    def keep(self, inputs: dict[str, Any]) -> None:
        """Micro-batches one after the other, by the tensors that their loss is made of."""
        batch = inputs["batch"]
        if isinstance(self.trainer, DQNTrainer):
            targets = batch.targets(self.trainer._next_values(batch), self.trainer.args.gamma)
            tensors = {"actions": batch.actions, "targets": targets} | batch.states
        else:
            names = ("actions", "legal", "train_mask", "old_logps", "values", "advantages", "returns")
            tensors = {name: getattr(batch, name) for name in names} | batch.states.tensors
        for name, tensor in tensors.items():
            self.batches[name] = torch.cat([self.batches[name], tensor]) if name in self.batches else tensor

    def save(self, folder: Path, number: int) -> None:
        """Everything, and an evaluation."""
        trainer = self.trainer
        pool = trainer.player.pool
        for name, tensors in (
            ("start", self.start),
            ("weights", agent_weights(trainer)),
            ("warm_up", self.warm_up),
            ("batch", self.batches),
            ("gradients", self.gradients.kept),
        ):
            tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
            save_file(tensors, folder / f"{name}_{number}.safetensors")
        texts = trainer.texts.known
        metrics = trainer.evaluate()
        result = {
            "steps": step_rows(trainer),
            "pool": pool.state_dict(),
            "texts": texts,
            "metrics": {key: value for key, value in metrics.items() if key.startswith("eval_")},
            "episodes": [(episode.environment, episode.number) for episode in trainer.eval_episodes],
        }
        (folder / f"result_{number}.json").write_text(json.dumps(result))


def main(root: Path) -> None:
    number = int(os.environ["RANK"])
    for name in SCENARIOS:
        watched = Watched(name, root / name)
        assert watched.trainer.accelerator.num_processes == 2
        watched.trainer.train()
        watched.save(root / name, number)
    resumed = scenario("dqn", root / "resumed", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(root / "dqn" / "checkpoint-4"))
    save_file(agent_weights(resumed), root / f"resumed_{number}.safetensors")
    rest = {"steps": step_rows(resumed), "pool": resumed.player.pool.state_dict()}
    (root / f"resumed_{number}.json").write_text(json.dumps(rest))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
