"""The run folder of an online trainer when training is over, and the short story on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmft.cli.console import change_table, said_lines, say
from mmft.cli.explain_finished import explain_answers
from mmft.cli.kept_samples import keep_samples, kept_places, row_record
from mmft.cli.launch import CONFIG_FILE, SUMMARY_FILE
from mmft.cli.loading import merged_folder, model_and_adapter
from mmft.cli.policies import is_offline, method
from mmft.cli.report_command import write_page
from mmft.config import RunConfig
from mmft.data.rows import PromptDataset
from mmft.engine.judging import RewardSuite
from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.health import health_warnings, reward_health
from mmft.report.card import CardFacts, model_card
from mmft.report.card_parts import CardSample
from mmft.report.card_samples import card_samples
from mmft.report.curves import GIVEN, POLICY, draw_curves, draw_overview
from mmft.report.page_data import REPORT_FILE
from mmft.report.record import (
    METRIC,
    Outcome,
    hardware,
    masked_samples,
    read_json_lines,
    spread,
    versions,
    write_json,
)
from mmft.report.statistics import answers, compare_evaluations
from mmft.tiny import CAPTIONER_NAME
from mmft.trainers.callbacks import METRICS_FILE, SAMPLES_FILE
from mmft.trainers.modality_use import modality_warnings
from mmft.trainers.online import OnlineTrainer

CURVES_FILE = "curves.png"
OVERVIEW_FILE = "overview.png"


def report(
    config: RunConfig, trainer: OnlineTrainer, held_out: PromptDataset | None, outcome: Outcome
) -> None:
    """Writes summary, samples, pictures and the model card, and prints before and after."""
    folder = Path(config.training.output_dir)
    resampling = config.script.resampling(config.training.seed)
    means = outcome.after.means if outcome.after else {}
    judged = judge_training(outcome, unoptimised_measures(weights_of(trainer.eval_suite), means), resampling)
    summary = summarize(config.script.algorithm, trainer, outcome) | judged
    write_json(folder / SUMMARY_FILE, summary)
    page = card(config, trainer, outcome, summary, card_samples(held_out, outcome, folder))
    (folder / "README.md").write_text(page, encoding="utf-8")
    history = read_json_lines(folder / METRICS_FILE)
    changes = outcome.changes
    ends = next(((each.before, each.after) for each in changes if each.name == "reward"), None)
    source = GIVEN if is_offline(config) else POLICY
    draw_curves(history, folder / CURVES_FILE, ends, source)
    if held_out is not None and outcome.before and outcome.after:
        samples, places = keep_samples(folder, held_out, outcome), kept_places(len(held_out))
        shown = spread(config.script.num_samples, len(samples))
        drawn = [(picture(held_out, places[index]), *captions(samples[index])) for index in shown]
        draw_overview(history, drawn, folder / OVERVIEW_FILE, ends, source)
        say("\n" + change_table(changes))
        say("\n" + "\n".join(story(samples[index]) for index in shown))
        explain_answers(trainer, held_out, samples, [(index, places[index]) for index in shown], folder)
    write_page(folder)
    say("\n" + closing(folder, summary))


def summarize(algorithm: str, trainer: OnlineTrainer, outcome: Outcome) -> dict[str, Any]:
    """What summary.json holds."""
    verification = trainer.collector.verification
    name = "rewards/unjudged_share"
    unjudged = [line[name] for line in trainer.state.log_history if name in line]
    num_rows = len(outcome.after.samples) if outcome.after else 0
    return {
        "algorithm": algorithm,
        "trainer": type(trainer).__name__,
        "critic": trainer.needs_critic(trainer.args),
        "reference": trainer.needs_reference(trainer.args),
        "before": outcome.before.means if outcome.before else None,
        "after": outcome.after.means if outcome.after else None,
        "held_out_rows": num_rows,
        "kept_samples": len(kept_places(num_rows)),
        "reward_weights": weights_of(trainer.eval_suite),
        "eval_temperature": trainer.args.eval_temperature,
        "steps": trainer.state.global_step,
        "wall_seconds": round(outcome.seconds, 2),
        "packed": bool(verification and verification.packed),
        "packed_difference": verification.difference if verification else None,
        "sampler_difference": verification.sampler_difference if verification else None,
        "packed_reason": verification.reason if verification else "no completion was sampled",
        "feature_cache_hit_rate": trainer.collector.encoder.cache.hit_rate,
        "modality_use": modality_use(outcome),
        "unjudged_share": sum(unjudged) / len(unjudged) if unjudged else 0.0,
        "masked_samples": masked_samples(trainer.state.log_history),
        "num_processes": trainer.accelerator.num_processes,
        "device": str(trainer.args.device),
        "hardware": hardware(),
        "versions": versions(),
    }


def modality_use(outcome: Outcome) -> dict[str, Any]:
    """How much held-out answers hang on their pictures; None where that was not measured."""
    told = {"before": outcome.before, "after": outcome.after}
    return {
        when: each.modality_use.record() if each and each.modality_use else None
        for when, each in told.items()
    }


def judge_training(outcome: Outcome, watched: list[str], resampling: Resampling) -> dict[str, Any]:
    """What summary.json says of the change: how sure it is, and signs that the reward was exploited.

    Args:
        outcome: held-out answers before and after, if there are any.
        watched: names of the measures that were not optimised.
        resampling: how intervals are drawn.
    """
    if not (outcome.before and outcome.after):
        return {"differences": {}, "health": None, "warnings": []}
    before, after = answers(outcome.before), answers(outcome.after)
    compared = compare_evaluations(outcome.before, outcome.after, resampling)
    corpus = outcome.after.corpus
    return {
        "differences": {name: each.difference for name, each in compared.items()},
        "outcomes": {
            name: {"wins": each.wins, "ties": each.ties, "losses": each.losses}
            for name, each in compared.items()
        },
        "signatures": corpus.signatures if corpus else {},
        "health": {
            "before": reward_health(before, resampling),
            "after": reward_health(after, resampling),
        },
        "warnings": [
            *health_warnings(before, after, watched=watched, resampling=resampling),
            *modality_warnings(outcome.before.modality_use, outcome.after.modality_use),
        ],
    }


def weights_of(suite: RewardSuite) -> dict[str, float]:
    """Name and weight of every reward."""
    return dict(zip(suite.names, suite.weights, strict=True))


def unoptimised_measures(weights: Mapping[str, float], measures: Iterable[str]) -> list[str]:
    """Measures that were reported and never optimised.

    These are rewards of weight 0, and corpus metrics that no optimised reward computes: `cider_d` is no
    witness against a policy that was paid for CIDEr-D.
    """
    paid = [name for name, weight in weights.items() if weight]
    metrics = [name for name in measures if name.startswith(METRIC)]
    return [
        *(f"rewards/{name}" for name, weight in weights.items() if weight == 0),
        *(name for name in metrics if not any(_family(name) in each for each in paid)),
    ]


def _family(metric: str) -> str:
    """What metric and reward of one kind share in their names: `bleu` of `metrics/bleu_4`."""
    return metric.removeprefix(METRIC).rstrip("_1234")


def row_records(rows: PromptDataset) -> list[dict[str, Any]]:
    """Held-out rows as samples.jsonl names them."""
    return [row_record(rows[index]) for index in range(len(rows))]


def picture(rows: PromptDataset, index: int) -> Any:
    """The first picture of a row, or None."""
    images = rows[index].images
    return images[0] if images else None


def captions(sample: dict[str, Any]) -> tuple[str, str]:
    """What was said before and after."""
    return sample["before"]["completion"], sample["after"]["completion"]


def story(sample: dict[str, Any]) -> str:
    """One row's completions, with their rewards."""
    answers = {"before": sample["before"], "after": sample["after"]}
    return said_lines(
        sample["key"], [(when, each["reward"], each["completion"]) for when, each in answers.items()]
    )


def closing(folder: Path, summary: dict[str, Any]) -> str:
    """How long it took and where everything is."""
    packed = (
        "each prompt shared by its completions" if summary["packed"] else f"plain: {summary['packed_reason']}"
    )
    warned = [f"WARNING {text}" for text in summary["warnings"]]
    if summary["masked_samples"]:
        warned.append(f"left out of training: {masked_text(summary['masked_samples'])}")
    files = (
        REPORT_FILE, SUMMARY_FILE, SAMPLES_FILE, METRICS_FILE, CURVES_FILE, OVERVIEW_FILE, CONFIG_FILE,
        "README.md",
    )  # fmt: skip
    written = [name for name in files if (folder / name).is_file()]  # without held-out rows there are fewer
    return "".join(f"{line}\n" for line in warned) + (
        f"{summary['steps']} steps in {summary['wall_seconds']:.0f} s; scoring: {packed}\n"
        f"{folder}/ holds the trained weights and {', '.join(written)}"
    )


def masked_text(masked: Mapping[str, int]) -> str:
    """Per reward the samples it failed on, in words."""
    return ", ".join(
        f"{count} sample{'s' if count != 1 else ''} that reward {name} failed on"
        for name, count in masked.items()
    )


def card(
    config: RunConfig,
    trainer: OnlineTrainer,
    outcome: Outcome,
    summary: Mapping[str, Any],
    samples: Sequence[CardSample],
) -> str:
    """The run's model card."""
    base, adapter = model_and_adapter(config)
    return model_card(
        CardFacts(
            folder=str(config.training.output_dir),
            base=base if adapter is None else str(merged_folder(config)),
            dataset=str(config.script.dataset_name),
            # Offline, `reward_funcs` judge held-out rows only.
            rewards=["reward"] if is_offline(config) else trainer.reward_suite.names,
            algorithm=config.script.algorithm,
            method=method(config),
            settings=config.resolved(),
            changes=outcome.changes,
            warnings=summary["warnings"],
            differences=summary["differences"],
            samples=samples,
            summary=summary,
            num_rows=len(outcome.after.samples) if outcome.after else 0,
            versions=versions(),
            adapter=trainer.actor_critic.backbone.has_adapters,
            packaged_base=base == CAPTIONER_NAME and adapter is None,
        )
    )
