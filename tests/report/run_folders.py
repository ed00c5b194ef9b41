"""Run folders made up for tests of the report: as small as they may be, and as odd."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mmft.report.thumbnails import write_thumbnails

SETTINGS: dict[str, Any] = {
    "algorithm": "ppo",
    "model_name_or_path": "mmft/tiny-captioner",
    "dataset_name": "mmft/scenes",
    "reward_funcs": ["captioning"],
    "reward_weights": None,
    "learning_rate": 1e-3,
    "seed": 0,
    "kl_target": None,
    "output_dir": "runs/x",
}
HISTORY: list[dict[str, Any]] = [
    {"step": 1, "loss": 0.5, "reward": 0.25, "kl": 0.0, "learning_rate": 1e-3},
    {"step": 2, "loss": 0.4, "reward": 0.5, "kl": 0.5, "learning_rate": 5e-4},
    {"step": 2, "train_runtime": 3.0},
]
HOSTILE = "</script><script>alert(1)</script>\0\ud800\u202e"


def answer(text: str, reward: float | None, **more: Any) -> dict[str, Any]:
    tokens = text.split()
    return {
        "completion": text,
        "tokens": len(tokens),
        "mean_logp": -0.5,
        "ended": True,
        "reward": reward,
        "rewards": {"captioning": reward, "captioning/bleu": reward},
        "token_texts": tokens,
        "logps": [-0.5] * len(tokens),
    } | more


def sample(
    number: int, before: float | None = 0.25, after: float | None = 0.5, **more: Any
) -> dict[str, Any]:
    return {
        "key": ["validation", number],
        "prompt": "Describe the picture.",
        "references": [f"a red circle {number}."],
        "before": answer("a circle.", before),
        "after": answer("a red circle.", after),
    } | more


def summary(count: int = 2, before: float = 0.25, after: float = 0.5, **more: Any) -> dict[str, Any]:
    def means(reward: float) -> dict[str, float]:
        return {
            "reward": reward,
            "rewards/captioning": reward,
            "rewards/captioning/bleu": reward + 0.125,
            "completions/mean_length": 3.0,
        }

    return {
        "algorithm": "ppo",
        "critic": True,
        "before": means(before),
        "after": means(after),
        "held_out_rows": count,
        "kept_samples": count,
        "eval_temperature": 0.0,
        "reward_weights": {"captioning": 1.0},
        "steps": 2,
        "wall_seconds": 3.0,
        "packed": True,
        "packed_difference": 1e-6,
        "packed_reason": "packed log-probs agree",
        "unjudged_share": 0.0,
        "masked_samples": {},
        "num_processes": 1,
        "device": "cpu",
        "versions": {"python": "3.11", "torch": "2.13"},
        "warnings": [],
    } | more


def lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def run_folder(
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = SETTINGS,
    told: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = HISTORY,
    samples: Sequence[Mapping[str, Any]] | None = None,
    pictures: bool = False,
) -> Path:
    """Writes a run; None leaves a file out, but for `told` and `samples`, which have two rows by default."""
    folder.mkdir(parents=True)
    samples = [sample(0), sample(1)] if samples is None else list(samples)
    if pictures:
        shades = [Image.new("RGB", (40, 20), (number * 40 % 256, 9, 9)) for number in range(len(samples))]
        samples = [
            each | {"pictures": write_thumbnails(folder, number, [shades[number]])}
            for number, each in enumerate(samples)
        ]
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    (folder / "summary.json").write_text(json.dumps(summary(len(samples)) if told is None else dict(told)))
    if history is not None:
        (folder / "metrics.jsonl").write_text(lines(history))
    (folder / "samples.jsonl").write_text(lines(samples))
    return folder
