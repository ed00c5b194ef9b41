"""`mmft check` of a recipe with `env`: some random steps, one update, and every problem found.

The update is done on a few steps in memory; nothing is written.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import PrinterCallback

from mmft.cli.agent_folder import failures
from mmft.cli.agent_setup import (
    Looked,
    actions_line,
    environment_maker,
    environment_name,
    look_at_both,
    make_agent_trainer,
    method,
    reading_line,
)
from mmft.cli.check import Findings, gpu_peak, mib, peak_memory, show_memory
from mmft.cli.console import say
from mmft.cli.loading import load_policy
from mmft.config import RunConfig
from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import Observation
from mmft.engine.playing import Player
from mmft.exploration.actions import draw, uniform_probs
from mmft.models.backbone import Backbone
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.dqn import DQNTrainer
from mmft.trainers.dqn_config import DQNConfig

TRIED_STEPS = 64
"""Random ones, over all environments."""
WARM_UP = 32
"""Steps at least by which features are fitted here."""


def run(config: RunConfig) -> int:
    """Looks at environment and model one after the other, so that one run shows every problem."""
    findings = Findings()
    looked = findings.attempt(lambda: look_at_both(config))
    if looked is not None:
        say(f"{environment_name(config)}: {actions_line(looked)}\n{reading_line(config, looked)}")
        findings.attempt(lambda: try_environment(config, looked, findings))
    backbone = findings.attempt(lambda: load_policy(config, train=True))
    if backbone is not None:
        show_memory(backbone)
        say(f"\nmethod: {method(config)}")
        if looked is not None:
            findings.attempt(lambda: try_one_update(config, backbone, looked, findings))
    findings.show()
    return 1 if findings.problems else 0


def try_environment(config: RunConfig, looked: Looked, findings: Findings) -> None:
    """Random steps: what is seen, what they bring, how long they take."""
    args = config.training
    pool = EnvironmentPool(
        environment_maker(config),
        args.num_envs,
        name=environment_name(config),
        seed=args.seed,
        time_limit=args.env_time_limit,
        max_restarts=args.max_env_restarts,
    )
    try:
        player = Player(pool, looked.reader)
        player.start()
        show_observation(player.observations[0])
        rewards, keys = [], {seen.key for seen in player.observations}
        generator = torch.Generator().manual_seed(args.seed)
        rounds, start = -(-TRIED_STEPS // args.num_envs), time.perf_counter()
        for _ in range(rounds):
            uniforms = torch.rand(args.num_envs, generator=generator)
            rewards += player.play(draw(uniform_probs(player.legal), uniforms)).rewards.tolist()
            keys |= {seen.key for seen in player.observations}
        seconds = (time.perf_counter() - start) / (rounds * args.num_envs)
        say(
            f"{len(rewards)} random steps in {args.num_envs} environments: rewards {min(rewards):.3g} to "
            f"{max(rewards):.3g}, {len(keys)} different observations, {1000 * seconds:.1f} ms a step"
        )
        show_episodes(pool, len(rewards), findings)
    finally:
        pool.close()
    if min(rewards) == max(rewards):
        findings.remarks.append(
            f"each of {len(rewards)} random steps brought {rewards[0]:.3g}: nothing told actions apart so far"
        )
    if pool.num_restarts:
        findings.problems.append(
            f"{failures(pool.num_restarts)} of environments in {len(rewards)} steps; the last one: "
            f"{pool.failures[-1]}"
        )


def show_observation(seen: Observation) -> None:
    """The first one."""
    pictures = [f"{image.width} x {image.height}" for image in seen.images]
    parts = [f"pictures of {', '.join(pictures)} pixels"] if pictures else []
    parts += [f"text {seen.text!r}"] if seen.text else []
    parts += [f"{len(seen.numbers)} numbers"] if seen.numbers is not None else []
    parts += [f"{int(seen.legal.sum())} legal actions"] if seen.legal is not None else []
    say(f"first observation: {', '.join(parts)}")


def show_episodes(pool: EnvironmentPool, num_steps: int, findings: Findings) -> None:
    """Those that ended."""
    episodes = pool.finished()
    if not episodes:
        findings.remarks.append(
            f"no episode ended in {num_steps} random steps over {pool.num_envs} environments; does each have "
            "an end or a time limit?"
        )
        return
    mean = statistics.fmean(each.total_reward for each in episodes)
    length = statistics.fmean(each.length for each in episodes)
    say(f"{len(episodes)} episodes ended: mean return {mean:.3f}, mean length {length:.1f}")
    if any(each.optimal_return is None for each in episodes):
        findings.remarks.append(
            "the environment does not say what the best possible return is (`optimal_return` in the info of "
            "`reset`), so that no share of it is reported"
        )


def try_one_update(config: RunConfig, backbone: Backbone, looked: Looked, findings: Findings) -> None:
    """A warm-up, some steps, and one update on them."""
    with tempfile.TemporaryDirectory() as folder:  # the Trainer makes its output folder at once
        few = dataclasses.replace(config, training=a_few_steps(config.training, folder))
        trainer = make_agent_trainer(few, backbone)
        trainer.remove_callback(PrinterCallback)
        trainer.begin()
        start = time.perf_counter()
        with torch.no_grad():
            states = trainer.agent.encoder.encode(trainer.player.observations)
        seconds = (time.perf_counter() - start) / len(trainer.player.observations)
        shapes = [f"{name} {tuple(each.shape[1:])}" for name, each in states.embeddings.items()]
        say(f"embeddings of a state: {', '.join(shapes)}; {1000 * seconds:.1f} ms each when not cached")
        trainer.train()
    show_update(config, trainer, looked)
    say(f"\npeak memory after one update: {mib(peak_memory())}{gpu_peak()}")


def show_update(config: RunConfig, trainer: AgentTrainer, looked: Looked) -> None:
    """The update's loss, what the agent thinks of the state that waits, and what is kept."""
    widths = ", ".join(f"{name} {width}" for name, width in trainer.agent.transforms.widths.items())
    loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    say(
        f"after scaling and PCA: {widths} wide\nloss of the first update: {loss:.4g}, after "
        f"{trainer.player.num_played} steps"
    )
    seen, legal = trainer.player.observations[:1], trainer.player.legal[:1]
    actions, scores = trainer.act(seen, legal)
    told = [f"{name} {score:.3f}" for name, score in zip(looked.names, scores[0].tolist(), strict=True)]
    say(f"of the state that waits: {', '.join(told)}; it would choose {looked.names[int(actions[0])]}")
    if isinstance(trainer, DQNTrainer):
        size = trainer.buffer.bytes_per_state * config.training.buffer_size
        say(
            f"buffer: {trainer.buffer.bytes_per_state:,} B a state, {mib(size)} for "
            f"{config.training.buffer_size:,} steps"
        )


def a_few_steps(args: Any, folder: str) -> Any:
    """The settings of a run with one update on as few steps as they allow."""
    shared: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": -1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
        "resume_from_checkpoint": None,
    }
    enough = max(WARM_UP, 2 * args.num_envs, 2 * (args.pca_components or 0))
    if isinstance(args, DQNConfig):
        starts = min(args.learning_starts, enough)
        return dataclasses.replace(
            args,
            **shared,
            learning_starts=starts,
            buffer_size=max(starts, 4 * args.num_envs),
            exploration_fraction=1.0,
            total_timesteps=(starts + math.ceil(args.train_freq)) * args.world_size,
        )
    steps = -(-args.per_device_train_batch_size // args.num_envs) * args.num_envs
    return dataclasses.replace(
        args,
        **shared,
        warm_up_steps=min(args.warm_up_steps, enough),
        per_device_train_batch_size=steps,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        early_stop_kl=None,
        total_timesteps=steps * args.world_size,
    )
