"""DQN beside stable-baselines3's: same environment, frozen features and head; learning curves and speed.

python -m tests.benchmarks.environments                 every measurement in a process of its own, in turn
python -m tests.benchmarks.environments SYSTEM SEED     one measurement, as one line of JSON

Writes the section "Agents in environments" of RESULTS.md, and docs/environments.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import Observation, ObservationReader
from mmft.engine.playing import Player
from mmft.environments.making import make_environment
from mmft.report.figures import BLUE, ORANGE, new_figure, save_figure
from mmft.trainers.agent import EVALUATION_SEED
from mmft.trainers.held_out_episodes import episode_means, play_episodes
from tests.benchmarks.processes import alone
from tests.benchmarks.sections import markdown_table, write_section
from tests.benchmarks.stable_baselines import FeatureObservations, train_stable_baselines

ENVIRONMENT = "mmft/FindObject-v0"
KINDS = [["red", "circle"], ["blue", "square"], ["green", "triangle"]]
ARGUMENTS: dict[str, Any] = {"size": 3, "kinds": KINDS, "wrong_reward": 0.0, "jitter": False}
SETTINGS: dict[str, Any] = {
    "total_timesteps": 17_000,
    "learning_starts": 1000,
    "buffer_size": 50_000,
    "batch_size": 256,
    "train_freq": 4,
    "target_update_interval": 250,
    "learning_rate": 1e-3,
    "gamma": 0.8,
    "exploration_fraction": 0.3,
    "hidden_sizes": [256, 256],
    "max_grad_norm": 10.0,
}
"""Of both systems; the interval counts optimizer steps."""
NUM_ENVS = 16
EVALUATE_EVERY = 4000
EPISODES = 100
SEEDS = 5
SHORT = 3000
"""Steps of measurements of speed alone."""
SYSTEMS = {
    "mmft": "mmft, features kept",
    "stable-baselines3": "stable-baselines3, features kept",
    "mmft, no cache": "mmft, every observation encoded",
    "stable-baselines3, no cache": "stable-baselines3, every observation encoded",
}


def measure_mmft(seed: int, cached: bool, steps: int) -> dict[str, Any]:
    """One training run of ours."""
    from mmft.trainers.dqn import DQNConfig, DQNTrainer

    names = ("learning_starts", "buffer_size", "train_freq", "target_update_interval", "learning_rate")
    shared = {name: SETTINGS[name] for name in (*names, "gamma", "exploration_fraction", "max_grad_norm")}
    with tempfile.TemporaryDirectory() as folder:
        args = DQNConfig(
            output_dir=folder,
            use_cpu=True,
            total_timesteps=steps,
            num_envs=NUM_ENVS,
            per_device_train_batch_size=SETTINGS["batch_size"],
            hidden_sizes=SETTINGS["hidden_sizes"],
            double_q=False,
            huber_delta=1.0,
            lr_scheduler_type="constant",
            eval_episodes=EPISODES,
            eval_strategy="steps",
            eval_steps=EVALUATE_EVERY // SETTINGS["train_freq"],
            feature_cache_mb=2048 if cached else 0,
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            **shared,
        )
        trainer = DQNTrainer("mmft/tiny-captioner", ENVIRONMENT, args, env_kwargs=ARGUMENTS)
        clock = Evaluations()
        evaluate = trainer.evaluate
        trainer.evaluate = lambda *a, **k: clock.timed(lambda: evaluate(*a, **k))  # type: ignore[method-assign]
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start - clock.seconds
        curve = [
            (int(line["step"] * args.train_freq + args.learning_starts), line["eval_return"])
            for line in trainer.state.log_history
            if "eval_return" in line
        ]
    return {"steps_per_second": steps / seconds, "curve": curve, "best": best_return()}


class Evaluations:
    """Takes the time of evaluations, which is no training."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, work: Any) -> Any:
        start = time.perf_counter()
        found = work()
        self.seconds += time.perf_counter() - start
        return found


def measure_stable_baselines(seed: int, cached: bool, steps: int) -> dict[str, Any]:
    """One training run of stable-baselines3 on the features that ours learns from."""
    clock = Evaluations()
    features = FeatureObservations(lambda: make_environment(ENVIRONMENT, ARGUMENTS), cached=cached, seed=seed)
    player = evaluation_player(seed)
    curve: list[tuple[int, float]] = []

    def evaluate(num_steps: int, q_network: Any) -> None:
        def act(observations: Sequence[Observation], legal: Tensor) -> tuple[Tensor, Tensor]:
            q = q_network(features.of(observations))
            return q.argmax(1), q

        episodes = clock.timed(lambda: play_episodes(player(), act, EPISODES))
        curve.append((num_steps, episode_means(episodes)["return"]))

    start = time.perf_counter()
    train_stable_baselines(features, SETTINGS, steps, seed, EVALUATE_EVERY, evaluate)
    seconds = time.perf_counter() - start - clock.seconds
    return {"steps_per_second": steps / seconds, "curve": curve, "best": best_return()}


def evaluation_player(seed: int) -> Any:
    """Makes the environments in which ours is evaluated too."""

    def make() -> Player:
        pool = EnvironmentPool(
            lambda: make_environment(ENVIRONMENT, ARGUMENTS),
            NUM_ENVS,
            name="evaluation",
            seed=seed + EVALUATION_SEED,
        )
        spaces = pool.observation_space, pool.action_space
        return Player(pool, ObservationReader(*spaces, environment="evaluation"))

    return make


def best_return() -> float:
    """The mean of the best possible returns, over many episodes."""
    env = make_environment(ENVIRONMENT, ARGUMENTS)
    return statistics.fmean(env.reset(seed=seed)[1]["optimal_return"] for seed in range(500))


def measure(system: str, seed: int) -> dict[str, Any]:
    """One measurement, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cached = "no cache" not in system
    steps = SETTINGS["total_timesteps"] if cached else SHORT
    return (measure_mmft if system.startswith("mmft") else measure_stable_baselines)(seed, cached, steps)


def report(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The section of RESULTS.md."""
    rows, curves = [], []
    for system, found in runs.items():
        speeds = [run["steps_per_second"] for run in found]
        rows.append([SYSTEMS[system], f"{statistics.median(speeds):.0f}", str(len(found))])
        if "no cache" not in system:  # those runs are for the clock, too short to learn from
            curves.append(
                [SYSTEMS[system], *(_spread(found, place) for place in range(len(found[0]["curve"])))]
            )
    points = [f"{step:,} steps" for step, _ in runs["mmft"][0]["curve"]]
    arguments = ", ".join(f"{name}={value}" for name, value in ARGUMENTS.items())
    update = f"one optimizer step per {SETTINGS['train_freq']} environment steps"
    return f"""# Agents in environments

{date.today()}, 2 CPU cores ({platform.machine()}), fp32, one thread a process, torch {torch.__version__},
stable-baselines3 {version("stable-baselines3")}.
`python -m tests.benchmarks.environments` writes this section.

DQN on `{ENVIRONMENT}` ({arguments});
state: the frozen captioner's last hidden state, standardised by 1,000 random steps; head: two hidden layers
of 256, ReLU. Both: squared error up to 1 and linear beyond, one-step targets of a target network that follows
every {SETTINGS["target_update_interval"]} optimizer steps, batch {SETTINGS["batch_size"]}, {update},
Adam at {SETTINGS["learning_rate"]}, gamma {SETTINGS["gamma"]}. mmft steps {NUM_ENVS} environments and encodes
their observations together; stable-baselines3 steps one, and gets the same features from a wrapper that
encodes each observation when it is seen. Greedy return of {EPISODES} episodes, mean over seeds (smallest to
largest); the best possible is {runs["mmft"][0]["best"]:.3f}:

{markdown_table(["system", *points], curves)}

Environment steps per second, training included and evaluation left out (medians). Features kept: the runs of
the curves, two at a time. Every observation encoded: runs of 3,000 steps, a third of them random and without
updates, alone; they compare the systems with each other, not with the rows above:

{markdown_table(["system", "steps/s", "runs"], rows)}

![Greedy return over environment steps, mean and range of the seeds](../../docs/environments.png)
"""


def _spread(found: list[dict[str, Any]], place: int) -> str:
    values = [run["curve"][place][1] for run in found]
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Both curves with the range of the seeds."""
    figure = new_figure(6.0, 3.6)
    axes = figure.subplots()
    for system, colour in (("mmft", BLUE), ("stable-baselines3", ORANGE)):
        steps = [step for step, _ in runs[system][0]["curve"]]
        values = np.array([[value for _, value in run["curve"]] for run in runs[system]])
        axes.plot(steps, values.mean(0), color=colour, label=f"{system}, {len(values)} seeds")
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.axhline(runs["mmft"][0]["best"], color="#777777", linewidth=1, linestyle=":", label="best possible")
    axes.set_xlabel("steps in environments")
    axes.set_ylabel("greedy return")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save_figure(figure, path)


def _alone(seed: int) -> Callable[[str], dict[str, Any]]:
    def measured(system: str) -> dict[str, Any]:
        found = alone("tests.benchmarks.environments", system, str(seed))
        print(system, seed, json.dumps(found), file=sys.stderr, flush=True)
        return found

    return measured


def main() -> None:
    """All measurements, or one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", nargs="?", choices=tuple(SYSTEMS))
    parser.add_argument("seed", nargs="?", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.system is not None:
        print(json.dumps(measure(chosen.system, chosen.seed)))
        return
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    kept, others = list(SYSTEMS)[:2], list(SYSTEMS)[2:]
    with ThreadPoolExecutor(len(kept)) as pool:  # one of each at a time, on a core each
        for seed in range(SEEDS):
            for system, found in zip(kept, pool.map(_alone(seed), kept), strict=True):
                runs[system].append(found)
    for system, found in zip(others, map(_alone(0), others), strict=True):
        runs[system].append(found)
    write_section(report(runs))
    draw(runs, Path(__file__).parents[2] / "docs" / "environments.png")


if __name__ == "__main__":
    main()
