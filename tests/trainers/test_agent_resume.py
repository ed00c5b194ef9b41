"""A run in environments that was stopped and resumed ends with the bits of the run that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.errors import ConfigError, EnvError
from mmft.trainers.a2c import AgentA2CConfig, AgentA2CTrainer
from mmft.trainers.dqn import DQNConfig, DQNTrainer
from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer
from tests.trainers.agent_support import Counter, agent_weights, make_agent_trainer, unlucky_counter
from tests.trainers.support import moved, step_rows

DQN, PPO, A2C = (DQNTrainer, DQNConfig), (AgentPPOTrainer, AgentPPOConfig), (AgentA2CTrainer, AgentA2CConfig)
SAVING = {"save_strategy": "steps", "save_steps": 1}


def masked_counter() -> Counter:
    return Counter(masked=True, ending="truncated", length=5)


SCENARIOS: dict[str, tuple[Any, list[int], dict[str, Any]]] = {
    # The target network follows between steps 3 and 4, 6 and 7; 16 random steps come before the first.
    "dqn": (DQN, [2, 3, 4], {"exploration_final_eps": 0.5, "n_steps": 2, "env": masked_counter}),
    "dqn thompson": (DQN, [3], {"exploration": "thompson", "dropout": 0.3, "dueling": True}),
    "dqn boltzmann": (
        DQN,
        [5],
        {"exploration": "boltzmann", "env": unlucky_counter, "num_envs": 3, "seed": 2},
    ),
    "dqn lora": (DQN, [3, 5], {"lora": True, "lora_dropout": 0.2, "total_timesteps": 44}),
    "dqn accumulated": (DQN, [2], {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
    # Rollouts of 4 optimizer steps: between two, in a first and in a second pass.
    "ppo": (PPO, [4, 5, 7], {"env": masked_counter}),
    "ppo lora": (PPO, [6], {"lora": True, "lora_dropout": 0.2, "total_timesteps": 32, "dropout": 0.1}),
    "ppo failing": (PPO, [3], {"env": unlucky_counter, "early_stop_kl": 1e-4}),
    "a2c": (A2C, [2, 3], {"entropy_coef": 0.01, "fusion": "cross_modal", "fusion_heads": 2}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Runs that save at every step and were never stopped, each made once."""
    runs: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in runs:
            (trainer, config), _, settings = SCENARIOS[name]
            runs[name] = make_agent_trainer(
                tmp_path_factory.mktemp("whole"), trainer, config, **settings, **SAVING
            )
            runs[name].train()
        return runs[name]

    return run


def checkpoint(trainer: Any, step: int) -> Path:
    return Path(trainer.args.output_dir) / f"checkpoint-{step}"


def everything(trainer: Any) -> dict[str, Tensor]:
    """Every tensor that the rest of a run depends on."""
    tensors = {f"agent.{name}": tensor for name, tensor in agent_weights(trainer).items()}
    for number, entry in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in entry.items()}
    if isinstance(trainer, DQNTrainer):
        tensors |= {f"target.{name}": tensor for name, tensor in trainer.target.following_state().items()}
        tensors |= {f"buffer.{name}": tensor for name, tensor in trainer.buffer.state_dict().items()}
    return tensors


@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name, (_, steps, _) in SCENARIOS.items() for step in steps]
)
def test_a_resumed_run_ends_with_the_same_bits(
    name: str, step: int, whole: Callable[[str], Any], tmp_path: Path
):
    run, ((trainer, config), _, settings) = whole(name), SCENARIOS[name]
    resumed = make_agent_trainer(tmp_path, trainer, config, **settings)
    with torch.no_grad():  # whatever the fresh trainer holds, the checkpoint counts
        for weight in resumed.agent.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    resumed.train(resume_from_checkpoint=str(checkpoint(run, step)))
    mine, expected = everything(resumed), everything(run)
    assert mine.keys() == expected.keys()
    assert moved(mine, expected) == set()
    assert step_rows(resumed) == step_rows(run)
    assert resumed.state.global_step == run.state.global_step > step
    assert resumed.player.pool.state_dict() == run.player.pool.state_dict()
    assert resumed.player.num_played == run.player.num_played


def test_the_scenarios_are_what_their_names_say(whole: Callable[[str], Any]):
    in_the_middle = json.loads((checkpoint(whole("dqn"), 3) / "environments_0.json").read_text())
    assert any(slot["actions"] for slot in in_the_middle["pool"]["environments"])
    for name in ("dqn boltzmann", "ppo failing"):
        restarts, (step,) = [row.get("env_restarts", 0) for row in step_rows(whole(name))], SCENARIOS[name][1]
        assert sum(restarts[:step]) > 0, name
        assert sum(restarts[step:]) > 0, name
    targets = [load_file(checkpoint(whole("dqn"), step) / "target.safetensors") for step in range(1, 9)]
    followed = [bool(moved(before, after)) for before, after in pairwise(targets)]
    assert followed == [False, False, True, False, False, True, False], "after steps 3 and 6"
    assert sum(row.get("early_stops", 0) for row in step_rows(whole("ppo failing"))) > 0


def test_saving_disturbs_nothing(whole: Callable[[str], Any], tmp_path: Path):
    (trainer, config), _, settings = SCENARIOS["dqn"]
    silent = make_agent_trainer(tmp_path, trainer, config, **settings)
    silent.train()
    assert moved(everything(silent), everything(whole("dqn"))) == set()


def test_evaluation_on_the_way_disturbs_nothing(whole: Callable[[str], Any], tmp_path: Path):
    (trainer, config), _, settings = SCENARIOS["dqn thompson"]
    watched = make_agent_trainer(tmp_path, trainer, config, eval_strategy="steps", eval_steps=3, **settings)
    watched.train()
    assert moved(everything(watched), everything(whole("dqn thompson"))) == set()
    assert step_rows(watched) == step_rows(whole("dqn thompson"))


def test_a_rollout_is_saved_only_where_it_is_unfinished(whole: Callable[[str], Any]):
    saved = [(checkpoint(whole("ppo"), step) / "rollout_0.safetensors").is_file() for step in range(3, 9)]
    assert saved == [True, False, True, True, True, False]


def test_weights_alone_hold_nothing_else(tmp_path: Path):
    make_agent_trainer(tmp_path, save_only_model=True, save_strategy="steps", save_steps=8).train()
    names = {path.name for path in (tmp_path / "checkpoint-8").iterdir()}
    assert {"agent.json", "heads.safetensors"} <= names
    assert not {"environments_0.json", "replay_0.safetensors", "target.safetensors", "progress.json"} & names


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run in an environment with an id."""
    trainer = make_agent_trainer(
        tmp_path_factory.mktemp("found"), **FINDING, save_strategy="steps", save_steps=2
    )
    trainer.train()
    return checkpoint(trainer, 2)


FINDING: dict[str, Any] = {
    "env": "mmft/FindObject-v0",
    "env_kwargs": {"size": 2, "num_objects": 1},
    "total_timesteps": 24,
}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_envs": 3}, r"num_envs=2 \(now 3\)"),
        ({"seed": 1}, r"seed=42 \(now 1\)"),
        ({"buffer_size": 32}, r"buffer_size=64 \(now 32\)"),
        (
            {"env_kwargs": {"size": 3, "num_objects": 1}},
            r"env_kwargs={'size': 2, 'num_objects': 1} \(now {'size': 3, 'num_objects': 1}\)",
        ),
        (
            {"env": Counter, "env_kwargs": None},
            r"environment=mmft/FindObject-v0 \(now Counter\), env_kwargs=",
        ),
        ({"model": "mmft/tiny-captioner"}, r"feature_sizes={'fused': 32} \(now {'fused': 128}\)"),
    ],
)
def test_another_run_cannot_take_over_a_checkpoint(
    settings: dict[str, Any], told: str, found: Path, tmp_path: Path
):
    trainer = make_agent_trainer(tmp_path, **(FINDING | settings))
    with pytest.raises(
        ConfigError, match=rf"was saved by a run with {told}.*\. Resume with the algorithm and"
    ):
        trainer.train(resume_from_checkpoint=str(found))


def test_another_algorithm_cannot_take_over_a_checkpoint(found: Path, tmp_path: Path):
    trainer = make_agent_trainer(tmp_path, *PPO, **(FINDING | {"total_timesteps": 48}))
    told = r"was saved by a run with trainer=DQNTrainer \(now AgentPPOTrainer\)"
    with pytest.raises(ConfigError, match=told):
        trainer.train(resume_from_checkpoint=str(found))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_sizes": [4]}, r"hidden_sizes=\[8\] \(now \[4\]\)"),
        ({"feature_scaling": "none"}, r"feature_scaling='standard' \(now 'none'\)"),
        ({"dueling": True}, r"dueling=False \(now True\)"),
        ({"lora": True}, r"backbone='full' \(now 'adapter'\)"),
    ],
)
def test_another_agent_cannot_take_over_a_checkpoint(
    settings: dict[str, Any], told: str, found: Path, tmp_path: Path
):
    trainer = make_agent_trainer(tmp_path, **(FINDING | settings))
    with pytest.raises(ConfigError, match=rf"holds an agent with {told}\. Use the environment and the"):
        trainer.train(resume_from_checkpoint=str(found))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("environments_0.json", "so that the environments' episodes are lost. Resume with as many processes"),
        ("replay_0.safetensors", "Resume with as many processes as before, or from another checkpoint"),
        ("progress.json", "so that nobody knows which rollout comes next"),
    ],
)
def test_a_file_that_is_gone_is_named(name: str, told: str, found: Path, tmp_path: Path):
    folder = shutil.copytree(found, tmp_path / "checkpoint-2")
    (folder / name).unlink()
    trainer = make_agent_trainer(tmp_path / "run", **FINDING)
    with pytest.raises(ConfigError, match=f"{name} is missing in .*{told}"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_a_buffer_of_other_states_is_named(found: Path, tmp_path: Path):
    """Pictures of another size under the same name: the buffer of the checkpoint holds other tensors."""
    folder = shutil.copytree(found, tmp_path / "checkpoint-2")
    path = folder / "replay_0.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    tensors["states.fused"] = tensors["states.fused"][..., :16].contiguous()
    save_file(tensors, path, metadata)
    trainer = make_agent_trainer(tmp_path / "run", **FINDING)
    told = r"replay buffer have `fused` of shape \(1, 16\), those of this run of shape \(1, 32\). Resume with"
    with pytest.raises(ConfigError, match=told):
        trainer.train(resume_from_checkpoint=str(folder))


def test_another_plan_cannot_take_over_half_a_rollout(whole: Callable[[str], Any], tmp_path: Path):
    (trainer, config), _, settings = SCENARIOS["ppo"]
    other = make_agent_trainer(tmp_path, trainer, config, num_mini_batches=1, **settings)
    told = (
        r"saved in the middle of a rollout with num_rows=16 \(now 8\), local_groups=16 \(now 8\), num_mini_"
    )
    with pytest.raises(ConfigError, match=told):
        other.train(resume_from_checkpoint=str(checkpoint(whole("ppo"), 5)))


def test_an_environment_that_keeps_something_from_episode_to_episode_cannot_resume(tmp_path: Path):
    made: list[Counter] = []

    def forgetful() -> Counter:
        """Each one made shows another number."""
        made.append(Counter())
        count = len(made)
        observe = made[-1]._observe
        made[-1]._observe = lambda: {**observe(), "mission": f"number {count}"}
        return made[-1]

    run = make_agent_trainer(tmp_path, env=forgetful, save_strategy="steps", save_steps=2, total_timesteps=24)
    run.train()
    with pytest.raises(EnvError, match="it is not a function of seed and actions"):
        make_agent_trainer(tmp_path / "again", env=forgetful, total_timesteps=24).train(
            resume_from_checkpoint=str(checkpoint(run, 2))
        )
