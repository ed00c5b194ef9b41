"""The algorithms on scenes at equal samples, and what holding weights near pretrained costs and keeps.

Runs the recipes of configs/tiny by their commands, as a user would, so that the same number of completions is
sampled for each. Writes docs/objectives.png and the section "Objectives" of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.base_task import base_likelihood, distance_to_base
from tests.benchmarks.sections import markdown_table, write_section

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny"
PICTURE = ROOT / "docs" / "objectives.png"
ALGORITHMS = {
    "ppo": "PPO",
    "group": "PPO, group advantages",
    "a2c": "A2C",
    "rwl": "reward-weighted likelihood",
}
GIVEN = {"rwl_offline": "reward-weighted likelihood, given captions"}
"""Samples nothing in training, so that it has no curve of sampled rewards."""
COMMANDS = {"group": "ppo", "l2sp": "ppo", "rwl_offline": "rwl"}
"""Recipes whose command is not their name."""
LAMBDAS = (0.0, 0.01, 0.1, 1.0, 10.0)
TRUTH = "rewards/true_fact_share"


def run(recipe: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """What a recipe's run came to: its summary, and what it logged; trained unless its folder is there."""
    if not (folder / "summary.json").is_file():
        train(recipe, folder, **settings)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"summary": json.loads((folder / "summary.json").read_text()), "history": history}


def train(recipe: str, folder: Path, **settings: Any) -> None:
    """By the recipe's command, in a process of its own."""
    overrides = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [
        sys.executable,
        "-m",
        "mmft",
        COMMANDS.get(recipe, recipe),
        "--config",
        str(TINY / f"{recipe}.yaml"),
    ]
    command += ["--output_dir", str(folder), "--num_samples", "0", "--disable_tqdm", "true", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def steps_per_rollout(recipe: str) -> tuple[int, int]:
    """Optimizer steps per rollout, and completions sampled for it."""
    settings = yaml.safe_load((TINY / f"{recipe}.yaml").read_text())
    algorithm = COMMANDS.get(recipe, recipe)
    from mmft.trainers.registry import ALGORITHMS as KNOWN

    defaults = KNOWN[algorithm].load_config()
    passes = settings.get("num_ppo_epochs", defaults.num_ppo_epochs) * settings.get("num_mini_batches", 1)
    return passes, settings["per_device_train_batch_size"] * settings.get("num_mini_batches", 1)


def compare(rollouts: int, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Every algorithm with every seed, in turn."""
    results = []
    for recipe in ALGORITHMS | GIVEN:
        passes, completions = steps_per_rollout(recipe)
        runs = []
        for seed in seeds:
            settings = {"max_steps": rollouts * passes, "seed": seed}
            runs.append(run(recipe, folder / f"{recipe}-{seed}", **settings))
            sys.stdout.write(f"{recipe} {seed}: {runs[-1]['summary']['after']['reward']:.3f}\n")
            sys.stdout.flush()
        results.append({"recipe": recipe, "passes": passes, "completions": completions, "runs": runs})
    return results


def spread(values: Sequence[float]) -> str:
    """Mean, and the range over seeds."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def comparison_table(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for each in results:
        summaries = [one["summary"] for one in each["runs"]]
        rows.append([
            (ALGORITHMS | GIVEN)[each["recipe"]],
            f"{summaries[0]['before']['reward']:.3f}",
            spread([s["after"]["reward"] for s in summaries]),
            spread([s["after"][TRUTH] for s in summaries]),
            str(each["passes"]),
            "yes" if any("value_loss" in line for line in each["runs"][0]["history"]) else "no",
            f"{statistics.mean(s['wall_seconds'] for s in summaries):.0f}",
        ])  # fmt: skip
    columns = [
        "algorithm",
        "reward before",
        "reward after",
        "true facts after",
        "passes",
        "critic",
        "seconds",
    ]
    return markdown_table(columns, rows)


def draw(results: Sequence[dict[str, Any]]) -> None:
    """Sampled reward and entropy over completions, mean and range of the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mmft.report.curves import smoothed

    figure = Figure(figsize=(10.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = zip(
        figure.subplots(1, 2),
        {"reward": "reward of sampled captions", "entropy": "entropy of the policy (nats per token)"}.items(),
        strict=True,
    )
    for axes, (name, title) in panels:
        for each in (one for one in results if one["recipe"] in ALGORITHMS):
            curves = []
            for one in each["runs"]:
                # One number per rollout: later passes log the same samples again, or nothing.
                lines = [line for line in one["history"] if "reward" in line and "eval_reward" not in line]
                curves.append(smoothed([line[name] for line in lines]))
            length = min(map(len, curves))
            places = [each["completions"] * (number + 1) for number in range(length)]
            columns = list(zip(*(curve[:length] for curve in curves), strict=True))
            (line,) = axes.plot(
                places, [statistics.mean(c) for c in columns], label=ALGORITHMS[each["recipe"]]
            )
            axes.fill_between(
                places,
                [min(c) for c in columns],
                [max(c) for c in columns],
                alpha=0.2,
                color=line.get_color(),
            )
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("completions sampled")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(PICTURE, dpi=150, facecolor="white")


def held_near(rollouts: int, folder: Path) -> list[dict[str, Any]]:
    """All weights of the language model train, held near pretrained by a growing lambda."""
    passes, _ = steps_per_rollout("l2sp")
    results = []
    for coefficient in LAMBDAS:
        place = folder / f"l2sp-{coefficient:g}"
        one = run("l2sp", place, max_steps=rollouts * passes, l2_pretrained_coef=coefficient)
        after = one["summary"]["after"]
        results.append({
            "lambda": coefficient,
            "distance": distance_to_base(place),
            "likelihood": base_likelihood(place),
            "reward": after["reward"],
            "truth": after[TRUTH],
        })  # fmt: skip
        sys.stdout.write(f"{results[-1]}\n")
        sys.stdout.flush()
    return results


def held_near_table(results: Sequence[dict[str, Any]]) -> str:
    start = base_likelihood(None)
    rows = [["not trained", "0", f"{start:.3f}", "", ""]]
    rows += [
        [
            f"{r['lambda']:g}",
            f"{r['distance']:.3f}",
            f"{r['likelihood']:.3f}",
            f"{r['reward']:.3f}",
            f"{r['truth']:.3f}",
        ]
        for r in results
    ]
    columns = ["lambda", "distance to pretrained", "log-prob of its captions", "reward", "true facts"]
    return markdown_table(columns, rows)


def report(results: Sequence[dict[str, Any]], near: Sequence[dict[str, Any]], arguments: Any) -> str:
    each = results[0]["completions"]
    seeds = ", ".join(map(str, arguments.seeds))
    return f"""# Objectives

{date.today().isoformat()}, {os.cpu_count()} CPU cores, fp32.
`python -m tests.benchmarks.objectives` writes this section and docs/objectives.png.

The recipes of configs/tiny on scenes, {arguments.rollouts} rollouts of {each} completions each, so that every
run sampled or was given {each * arguments.rollouts:,}; seeds {seeds}: mean and range over seeds. Rewards and
true facts are those of 256 held-out scenes, captions sampled at temperature 1; true facts are not optimised.

{comparison_table(results)}

Held near pretrained: every weight of projector and language model trains with PPO, group advantages and
lambda * ||theta - theta_pretrained||^2 (configs/tiny/l2sp.yaml, {arguments.near_rollouts} rollouts). The
log-prob per token is that of the captions which the pretrained captioner itself says of 128 held-out
scenes: its old task.

{held_near_table(near)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--near-rollouts", type=int, default=75)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "objectives")
    parser.add_argument("--keep", action="store_true", help="use the runs that the folder holds already")
    arguments = parser.parse_args()
    if not arguments.keep:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    results = compare(arguments.rollouts, arguments.seeds, arguments.folder)
    draw(results)
    near = held_near(arguments.near_rollouts, arguments.folder)
    text = report(results, near, arguments)
    write_section(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
