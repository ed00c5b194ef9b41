"""`mmft generate`: completions for the rows of a split, greedy or sampled; with rewards if any are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmft.cli.console import is_main_process, said_lines, say
from mmft.cli.evaluate import split_to_score
from mmft.cli.loading import load_policy
from mmft.cli.policies import AnsweringPolicy, for_answering
from mmft.cli.run_folder import row_records
from mmft.config import RunConfig
from mmft.data.rows import PromptDataset
from mmft.engine.reward_calls import no_reward
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.report.record import spread, write_json_lines
from mmft.resolve import resolve_rewards

GENERATIONS_FILE = "generations.jsonl"


def run(config: RunConfig) -> int:
    """Writes one line per row and prints some; of several processes the first one does the work."""
    if not is_main_process():
        return 0
    script = config.script
    rows = split_to_score(script)
    rewards = resolve_rewards([*script.reward_funcs, *script.eval_funcs])[0] or [no_reward]
    training = dataclasses.replace(for_answering(config.training), reward_weights=None)
    policy = AnsweringPolicy(load_policy(config, train=False), rewards, training, None, rows)
    target = Path(script.output_file or Path(config.training.output_dir) / GENERATIONS_FILE)
    answers = list(completions(policy, rows, do_sample=script.do_sample))
    records = [row | {"completions": answer} for row, answer in zip(row_records(rows), answers, strict=True)]
    write_json_lines(target, records)
    for index in spread(script.num_samples, len(rows)):
        say(
            said_lines(rows[index].key, [("", each["reward"], each["completion"]) for each in answers[index]])
        )
    say(f"\n{target} holds the completions of {len(rows)} rows")
    return 0


def completions(
    policy: AnsweringPolicy, rows: PromptDataset, *, do_sample: bool
) -> Iterator[list[dict[str, Any]]]:
    """Per row its completions: one greedy, or `num_generations` sampled ones."""
    args = policy.args
    params = args.sampling_params() if do_sample else greedy(args.max_completion_length)
    count = params.num_generations
    size = max(args.per_device_eval_batch_size // count, 1)
    for start in range(0, len(rows), size):
        batch = [rows[index] for index in range(start, min(start + size, len(rows)))]
        numbers = range(start * count, (start + len(batch)) * count)
        noise = sample_noise(args.seed, 0, numbers, args.max_completion_length) if do_sample else None
        judged = policy.collector.judge(batch, params, noise)
        totals, parts = judged.judgement.total.tolist(), judged.judgement.components
        for index, texts in enumerate(judged.texts):
            yield [
                {
                    "completion": text,
                    "reward": totals[index * count + place],
                    "rewards": {name: values[index * count + place] for name, values in parts.items()},
                }
                for place, text in enumerate(texts)
            ]


def greedy(max_completion_length: int) -> SamplingParams:
    """One completion per prompt, always the likeliest token."""
    return SamplingParams(num_generations=1, max_completion_length=max_completion_length, temperature=0)
