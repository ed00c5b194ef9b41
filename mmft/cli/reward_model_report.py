"""The run folder of `mmft reward-model` when training is over, and the short story on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from mmft.cli.console import change_table, said_lines, say, table
from mmft.cli.kept_samples import kept_of_row, kept_places
from mmft.cli.launch import CONFIG_FILE, SUMMARY_FILE
from mmft.cli.loading import model_and_adapter
from mmft.cli.report_command import write_page
from mmft.config import RewardModelScriptConfig, RunConfig
from mmft.data.rows import PromptDataset
from mmft.evaluation.binary import binary_report, is_binary
from mmft.report.page_data import REPORT_FILE
from mmft.report.record import (
    Evaluation,
    Outcome,
    hardware,
    spread,
    versions,
    write_json,
    write_json_lines,
)
from mmft.report.reward_model_card import GroupChange, RewardModelFacts, reward_entry, reward_model_card
from mmft.trainers.callbacks import METRICS_FILE, SAMPLES_FILE
from mmft.trainers.reward_model import RewardModelTrainer

Sample = Mapping[str, Any]
TOLD = ("chosen", "rejected", "margin", "completion", "rating")
"""What the data says of a row; the rest of a sample is the model's."""


def with_binary_measures(evaluation: Evaluation) -> Evaluation:
    """Accuracy, majority share and area under the curve, where the ratings are 0 and 1."""
    samples = evaluation.samples
    if not samples or "rating" not in samples[0] or not is_binary([sample["rating"] for sample in samples]):
        return evaluation
    measures = binary_report(
        [sample["reward"] for sample in samples], [sample["rating"] for sample in samples]
    )
    return Evaluation(evaluation.means | measures, samples)


def report(
    config: RunConfig, trainer: RewardModelTrainer, held_out: Dataset | None, outcome: Outcome
) -> None:
    """Writes summary, samples and the model card, and prints before and after."""
    folder = Path(config.training.output_dir)
    groups = group_changes(config.script, held_out, outcome)
    summary = summarize(trainer, outcome, groups)
    write_json(folder / SUMMARY_FILE, summary)
    (folder / "README.md").write_text(card(config, outcome, groups, summary), encoding="utf-8")
    if held_out is not None and outcome.before and outcome.after:
        records = row_records(config.script, held_out, outcome)
        write_json_lines(folder / SAMPLES_FILE, with_pictures(folder, config.script, held_out, records))
        say("\n" + change_table(outcome.changes))
        if groups:
            say("\n" + group_table(str(config.script.group_column), groups))
        say("\n" + "\n".join(story(outcome.after.samples, records, config.script.num_samples)))
    write_page(folder)
    say("\n" + closing(folder, summary, reward_entry(str(folder), config.resolved())))


def summarize(trainer: RewardModelTrainer, outcome: Outcome, groups: Sequence[GroupChange]) -> dict[str, Any]:
    """What summary.json holds."""
    verification = trainer.inputs.verification
    num_rows = len(outcome.after.samples) if outcome.after else 0
    return {
        "before": outcome.before.means if outcome.before else None,
        "after": outcome.after.means if outcome.after else None,
        "held_out_rows": num_rows,
        "kept_samples": len(kept_places(num_rows)),
        "groups": {
            each.name: {"rows": each.num_rows, "before": each.before, "after": each.after} for each in groups
        },
        "loss_type": trainer.args.loss_type,
        "steps": trainer.state.global_step,
        "wall_seconds": round(outcome.seconds, 2),
        "packed": bool(verification and verification.packed),
        "packed_reason": verification.reason if verification else "no row was read",
        "num_processes": trainer.accelerator.num_processes,
        "device": str(trainer.args.device),
        "hardware": hardware(),
        "versions": versions(),
    }


# One row, and rows of a kind


def is_preference(sample: Sample) -> bool:
    """Whether a sample is of two completions; else it is of one and its rating."""
    return "chosen" in sample


def error(sample: Sample) -> float:
    """How wrong a row was told: below 0 is right for a preference; the distance to a rating."""
    if is_preference(sample):
        return sample["rejected_reward"] - sample["chosen_reward"]
    return abs(sample["reward"] - sample["rating"])


def group_changes(
    script: RewardModelScriptConfig, held_out: Dataset | None, outcome: Outcome
) -> list[GroupChange]:
    """Accuracy, or the squared error of ratings, by the values of `group_column`."""
    if script.group_column is None or held_out is None or not outcome.before or not outcome.after:
        return []
    values = [str(value) for value in held_out[script.group_column]]
    measured = [_by_group(each.samples, values) for each in (outcome.before, outcome.after)]
    return [
        GroupChange(name, values.count(name), *(measure[name] for measure in measured))
        for name in sorted(set(values))
    ]


def group_measure(outcome: Outcome) -> str:
    """What `group_changes` measures."""
    samples = outcome.after.samples if outcome.after else []
    return "accuracy" if _counts_right(samples) else "mse"


def _by_group(samples: Sequence[Sample], values: Sequence[str]) -> dict[str, float]:
    counts_right = _counts_right(samples)
    found: dict[str, list[float]] = {}
    for sample in samples:
        measure = _share_right(sample) if counts_right else error(sample) ** 2
        found.setdefault(values[sample["row"]], []).append(measure)
    return {name: statistics.fmean(measures) for name, measures in found.items()}


def _counts_right(samples: Sequence[Sample]) -> bool:
    return bool(samples) and (
        is_preference(samples[0]) or is_binary([sample["rating"] for sample in samples])
    )


def _share_right(sample: Sample) -> float:
    """1 or 0; a preference that is left open is half right."""
    if is_preference(sample):
        wrong = error(sample)
        return 0.5 if wrong == 0 else float(wrong < 0)
    return float((sample["reward"] > 0.5) == (sample["rating"] == 1))


def group_table(column: str, groups: Sequence[GroupChange]) -> str:
    """Each group's rows and its measure before and after."""
    rows = [(each.name, str(each.num_rows), f"{each.before:.3f}", f"{each.after:.3f}") for each in groups]
    return table((f"by {column}", "rows", "before", "after"), rows)


def row_records(script: RewardModelScriptConfig, held_out: Dataset, outcome: Outcome) -> list[dict[str, Any]]:
    """Per held-out row what samples.jsonl holds: the data, and what the model made of it before and after."""
    if outcome.before is None or outcome.after is None:
        return []
    split = script.eval_split or "held out"
    columns = {
        name: held_out[name]
        for name in ("prompt", script.group_column)
        if name is not None and name in held_out.column_names
    }
    records = []
    for before, after in zip(outcome.before.samples, outcome.after.samples, strict=True):
        row = after["row"]
        given = {"key": [split, row], "prompt": script.instruction}
        given |= {name: values[row] for name, values in columns.items()}
        given |= {name: after[name] for name in TOLD if name in after}
        records.append(given | {"before": _judgement(before), "after": _judgement(after)})
    return records


def with_pictures(
    folder: Path, script: RewardModelScriptConfig, held_out: Dataset, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records that the folder keeps, and what was shown with them, made small and written beside them."""
    prompts = PromptDataset(
        held_out, name="held out", instruction=script.instruction, system_prompt=script.system_prompt
    )
    kept = []
    for place in kept_places(len(records)):
        record = records[place]
        told = kept_of_row(folder, place, prompts[record["key"][1]], without=(*TOLD, *record))
        kept.append(told | record)
    return kept


def _judgement(sample: Sample) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name not in (*TOLD, "row")}


# The terminal and the card


def story(samples: Sequence[Sample], records: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Some rows that the model tells right and some that it does not."""
    errors = [error(sample) for sample in samples]
    if is_preference(samples[0]):
        bound, heads = 0.0, ("told right:", "told wrong:")
    elif _counts_right(samples):
        bound, heads = 0.5, ("told right:", "told wrong:")
    else:
        bound, heads = statistics.median(errors), ("nearest half:", "other half:")
    right = [number for number, each in enumerate(errors) if each < bound]
    wrong = [number for number, each in enumerate(errors) if each >= bound]
    lines = []
    for head, numbers, share in ((heads[0], right, count // 2), (heads[1], wrong, count - count // 2)):
        shown = [numbers[place] for place in spread(share, len(numbers))]
        lines += [head, *(_said(samples[number], records[number]) for number in shown)] if shown else []
    return lines


def _said(sample: Sample, record: Mapping[str, Any]) -> str:
    if is_preference(sample):
        answers = [(side, sample[f"{side}_reward"], sample[side]) for side in ("chosen", "rejected")]
    else:
        answers = [(f"rated {sample['rating']:.2f}", sample["reward"], sample["completion"])]
    return said_lines(record["key"], answers)


def closing(folder: Path, summary: Mapping[str, Any], entry: str) -> str:
    """How long it took, where everything is and how to go on."""
    files = [name for name in (REPORT_FILE,) if (folder / name).is_file()]
    files += [SUMMARY_FILE, METRICS_FILE, CONFIG_FILE, "README.md"]
    return (
        f"{summary['steps']} steps in {summary['wall_seconds']:.0f} s\n"
        f"{folder}/ holds the reward model and {', '.join(files)}\n"
        f"as a reward: `reward_funcs: [{entry}]`"
    )


def card(
    config: RunConfig, outcome: Outcome, groups: Sequence[GroupChange], summary: Mapping[str, Any]
) -> str:
    """The run's model card."""
    return reward_model_card(
        RewardModelFacts(
            folder=str(config.training.output_dir),
            base=model_and_adapter(config)[0],
            dataset=str(config.script.dataset_name),
            learned="preferences" if config.training.learns_preferences else "ratings",
            settings=config.resolved(),
            changes=outcome.changes,
            groups=groups,
            group_measure=group_measure(outcome),
            group_column=config.script.group_column,
            num_rows=len(outcome.after.samples) if outcome.after else 0,
            versions=versions(),
            summary=summary,
        )
    )
