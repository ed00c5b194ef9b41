"""What a run was: how long it took, on what, with which settings, and what was left out of it."""

from __future__ import annotations

import math
from typing import Any

from mmft.report.chart_catalogue import SECONDS
from mmft.report.page_source import RunSource, items, mapping
from mmft.report.page_text import count, number, short, tidy

METHODS = {
    "ppo": "PPO",
    "a2c": "Advantage actor-critic",
    "rwl": "Reward-weighted likelihood",
    "dqn": "Deep Q-learning",
}
ROUNDING = 0.01
"""Seconds by which `wall_seconds` may be too short."""
Facts = list[list[str]]


def run_record(run: RunSource) -> dict[str, Any]:
    """A run as the page lists it."""
    processes = number(run.summary.get("num_processes"))
    told = mapping(run.summary.get("hardware"))
    hardware = tidy(told) | ({"processes": int(processes)} if processes else {})
    return {
        "name": run.label,
        "facts": facts(run),
        "warnings": [short(text, 1_000) for text in run.warnings],
        "config": tidy(run.settings),
        "versions": tidy(mapping(run.summary.get("versions"))),
        "hardware": hardware,
    }


def subtitle(run: RunSource) -> str:
    """One line on what was trained, on what."""
    settings, summary = run.settings, run.summary
    model = settings.get("model_name_or_path", "a model")
    algorithm = summary.get("algorithm", settings.get("algorithm"))
    method = METHODS.get(str(algorithm), str(algorithm or "training"))
    if run.kind == "agent":
        where = summary.get("environment", settings.get("env"))
        return short(f"{method} of an agent in {where}, on {model}", 300)
    data = settings.get("dataset_name", "unknown rows")
    if run.kind == "reward_model":
        return short(f"A reward model on {model}, learned from {data}", 300)
    if run.kind == "sft":
        return short(f"A warm start of {model} on the captions of {data}", 300)
    words = {"True": " with a learned critic", "False": " without a critic"}
    critic = words.get(str(summary.get("critic")), "")
    return short(f"{method}{critic}, {model} on {data}", 300)


def facts(run: RunSource) -> Facts:
    """Labels and texts, in the order of interest."""
    summary = run.summary
    parts = (_effort(run), _held_out(run), _scoring(run), _left_out(run), _agent(run))
    found = [fact for part in parts for fact in part]
    if summary.get("device") is not None:
        found.append(["device", short(summary["device"])])
    return found


def _effort(run: RunSource) -> Facts:
    summary = run.summary
    steps, seconds = number(summary.get("steps")), number(summary.get("wall_seconds"))
    trained = sum(number(line.get(SECONDS)) or 0.0 for line in run.history)
    found: Facts = []
    if steps is None and run.history:
        last = max((number(line.get("step")) or 0.0 for line in run.history), default=0.0)
        found.append(["last step that was logged", f"{last:,.0f}"])
    if steps is not None:
        found.append(["optimizer steps", f"{steps:,.0f}"])
    if seconds is not None:
        # Steps and log lines are of the whole run, the wall time is that since it was last resumed.
        resumed = trained > seconds + ROUNDING
        found.append([f"training took{', since it was last resumed' if resumed else ''}", duration(seconds)])
    if steps and seconds:
        found.append(["optimizer steps per second", f"{steps / max(seconds, trained):.3g}"])
    for name, text in (
        ("environment_steps", "steps in environments"),
        ("env_restarts", "environments made anew"),
    ):
        if (value := number(summary.get(name))) is not None:
            found.append([text, f"{value:,.0f}"])
    return found


def _held_out(run: RunSource) -> Facts:
    rows, kept = number(run.summary.get("held_out_rows")), number(run.summary.get("kept_samples"))
    found = [] if rows is None else [["held-out rows", f"{rows:,.0f}"]]
    if kept is not None and rows is not None and kept < rows:
        found.append(["of which the run keeps", f"{kept:,.0f}, spread evenly"])
    return found


def _scoring(run: RunSource) -> Facts:
    """Whether completions shared their prompts, and how exactly that was checked."""
    summary = run.summary
    if not isinstance(summary.get("packed"), bool):
        return []
    if not summary["packed"]:
        text = f"each completion on its own: {summary.get('packed_reason')}"
    else:
        difference = number(summary.get("packed_difference"))
        checked = "" if difference is None else f" (largest difference to the plain forward {difference:.1e})"
        text = f"each prompt shared by its completions{checked}"
    found = [["scoring", short(text, 400)]]
    sampler = number(summary.get("sampler_difference"))
    if sampler is not None:
        found.append(["sampler beside scoring", f"largest difference {sampler:.1e}"])
    rate = number(summary.get("feature_cache_hit_rate"))
    if rate is not None:
        found.append(["feature cache", f"{rate:.0%} of prompts were encoded before"])
    return found


def _left_out(run: RunSource) -> Facts:
    found: Facts = []
    unjudged = number(run.summary.get("unjudged_share"))
    if unjudged is not None:
        found.append(["completions that nothing judged", f"{unjudged:.1%}"])
    for name, failed in mapping(run.summary.get("masked_samples")).items():
        number_failed = number(failed)
        if number_failed:
            text = f"{count(int(number_failed), 'sample')} left out"
            found.append([short(f"reward {name} failed"), text])
    return found


def _agent(run: RunSource) -> Facts:
    summary = run.summary
    found: Facts = []
    actions = items(summary.get("actions"))
    if actions:
        found.append(["actions", short(", ".join(map(str, actions)), 400)])
    buffer, encoder = mapping(summary.get("buffer")), mapping(summary.get("encoder"))
    if buffer:
        found.append(["buffer", short(buffer.get("holds"), 400)])
    asked, encoded = number(encoder.get("asked")), number(encoder.get("encoded"))
    if asked is not None and encoded is not None:
        found.append(["states", f"{asked:,.0f} asked for, {encoded:,.0f} of them went through the model"])
    return found


def duration(seconds: float) -> str:
    """Seconds, or minutes, or hours, as one says it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{math.floor(minutes / 60)} h {minutes % 60:.0f} min"
