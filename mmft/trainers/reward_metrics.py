"""What `evaluate` keeps of held-out judgements, and what it reports of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy import stats

from mmft.evaluation.uncertainty import calibration_report, preference_calibration_error
from mmft.models.reward_model import RewardEstimate
from mmft.objectives.reward_model import bradley_terry_loss
from mmft.trainers.reward_model_data import RewardBatch

Samples = Sequence[dict[str, Any]]


def reward_samples(batch: RewardBatch, estimate: RewardEstimate) -> list[dict[str, Any]]:
    """One record per row: the rewards of its completions, their variances, and what people said."""
    columns = {
        "reward": batch.given(estimate.mean),
        "epistemic": batch.given(estimate.epistemic),
        "aleatoric": batch.given(estimate.aleatoric),
    }
    numbers = {name: values.tolist() for name, values in columns.items()}
    records = []
    for i, row in enumerate(batch.rows):
        values = {name: rows[i] for name, rows in numbers.items()}
        if len(row.texts) == 2:
            record: dict[str, Any] = {"chosen": row.texts[0], "rejected": row.texts[1]}
            for name, (chosen, rejected) in values.items():
                record |= {f"chosen_{name}": chosen, f"rejected_{name}": rejected}
            record["margin"] = row.target
        else:
            record = {"completion": row.texts[0], "rating": row.target}
            record |= {name: value[0] for name, value in values.items()}
        records.append({"row": row.number, "cut": row.cut} | record)
    return records


def reward_metrics(samples: Samples) -> dict[str, float]:
    """Of preferences or of ratings, whichever the samples are, and the share of rows read in part."""
    metrics = preference_metrics(samples) if "chosen" in samples[0] else rating_metrics(samples)
    return metrics | {"cut_share": sum(sample["cut"] for sample in samples) / len(samples)}


def preference_metrics(samples: Samples) -> dict[str, float]:
    """Loss, accuracy, mean margin; how far stated probabilities are from accuracy; deviations if any."""
    chosen, rejected, margin = (
        torch.tensor([sample[name] for sample in samples], dtype=torch.float64)
        for name in ("chosen_reward", "rejected_reward", "margin")
    )
    difference = chosen - rejected
    metrics = {
        "loss": bradley_terry_loss(chosen, rejected, margin, num_pairs=len(samples)).item(),
        "accuracy": (0.5 * (1 + torch.sign(difference))).mean().item(),  # undecided is half right
        "mean_margin": difference.mean().item(),
        "mean_reward": (0.5 * (chosen + rejected)).mean().item(),
        "calibration_error": preference_calibration_error(torch.sigmoid(difference)),
    }
    return metrics | _deviations(samples, ("chosen_", "rejected_"))


def rating_metrics(samples: Samples) -> dict[str, float]:
    """Squared error and correlations; likelihood, calibration and deviations where variances are above 0.

    A correlation that is not defined (predictions or ratings all the same) is left out."""
    predictions = [sample["reward"] for sample in samples]
    ratings = [sample["rating"] for sample in samples]
    variances = [sample["epistemic"] + sample["aleatoric"] for sample in samples]
    error = sum((p - r) ** 2 for p, r in zip(predictions, ratings, strict=True)) / len(samples)
    metrics = {"mse": error}
    if len(samples) > 1 and len(set(predictions)) > 1 and len(set(ratings)) > 1:
        metrics["pearson"] = float(stats.pearsonr(predictions, ratings).statistic)
        metrics["spearman"] = float(stats.spearmanr(predictions, ratings).statistic)
    if all(variance > 0 for variance in variances):
        metrics |= calibration_report(predictions, variances, ratings)
    metrics |= _deviations(samples, ("",))
    return {"loss": metrics.get("nll", error)} | metrics


def _deviations(samples: Samples, prefixes: Sequence[str]) -> dict[str, float]:
    """Mean standard deviations of each kind that the model states."""
    deviations = {}
    for kind in ("epistemic", "aleatoric"):
        variances = [sample[prefix + kind] for sample in samples for prefix in prefixes]
        if any(variances):
            deviations[f"{kind}_std"] = sum(math.sqrt(each) for each in variances) / len(variances)
    return deviations
