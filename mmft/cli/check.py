"""`mmft check`: one prompt group through the engine, what would train, and every problem found.

Nothing is updated and nothing is written. Problems are what would stop or spoil the run, and make the command
exit with 1; remarks are good to know.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch

from mmft.cli.console import number, say, table
from mmft.cli.loading import held_out_prompts, load_policy, parameter_counts, train_prompts
from mmft.cli.policies import Rewards, is_offline, load_rewards, make_trainer, method
from mmft.config import RunConfig
from mmft.data.rows import PromptDataset
from mmft.engine.actor_critic import Prompts
from mmft.engine.packing import Completions
from mmft.engine.reward_calls import is_async, is_two_phase, reward_batch
from mmft.engine.sampling import sample_noise
from mmft.errors import (
    ConfigError,
    DataError,
    EnvError,
    NonFiniteError,
    RewardError,
    UnsupportedModelError,
)
from mmft.models.backbone import Backbone
from mmft.models.freezing import trained_pretrained_weights
from mmft.resolve import reward_checker
from mmft.trainers.collector import Judged, ids_by_row
from mmft.trainers.offline_rows import OfflineRows
from mmft.trainers.online import OnlineTrainer
from mmft.trainers.registry import ALGORITHMS
from mmft.types import RewardFunction

MAX_BAD_ROWS = 20
MISTAKES = (ConfigError, DataError, EnvError, NonFiniteError, RewardError, UnsupportedModelError)
T = TypeVar("T")


@dataclass
class Findings:
    """What was found so far, in order."""

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; a mistake of the user becomes a problem and the check goes on."""
        try:
            return action()
        except MISTAKES as error:
            self.problems.append(" ".join(str(error).split()))
            return None

    def show(self) -> None:
        """Prints everything found."""
        for remark in self.remarks:
            say(f"note: {remark}")
        for problem in self.problems:
            say(f"PROBLEM: {problem}")
        say(f"{len(self.problems)} problem(s) found" if self.problems else "no problems found")


def run(config: RunConfig) -> int:
    """Looks at data, rewards and model one after the other, so that one run shows every problem."""
    findings = Findings()
    rewards = findings.attempt(lambda: load_rewards(config))
    train_rows = findings.attempt(lambda: train_prompts(config.script))
    held_out = findings.attempt(lambda: held_out_prompts(config.script))
    for rows in (train_rows, held_out):
        if rows is not None:
            check_rows(rows, findings)
    if train_rows is not None and not is_offline(config):
        check_arithmetic(config.training, len(train_rows), findings)
    backbone = findings.attempt(lambda: load_policy(config, train=True))
    if backbone is not None:
        show_parts(backbone, findings)
        show_algorithm(config, backbone)
        if rewards is not None and train_rows is not None:
            findings.attempt(lambda: try_one_group(config, backbone, rewards, train_rows, held_out, findings))
    findings.show()
    return 1 if findings.problems else 0


def check_rows(rows: PromptDataset, findings: Findings) -> None:
    """Reads every row: bad pictures, prompts and references are named."""
    bad = rows.validate(max_problems=MAX_BAD_ROWS)
    findings.problems += bad
    if len(bad) == MAX_BAD_ROWS:
        findings.remarks.append(f"only the first {MAX_BAD_ROWS} bad rows of {rows.name!r} are listed")
    say(f"data: {len(rows):,} rows in {rows.name!r}, {len(bad)} bad")


def check_arithmetic(args: Any, num_rows: int, findings: Findings) -> None:
    """How many prompts, completions and steps a rollout has."""
    completions = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.num_mini_batches
    prompts = completions // args.num_generations * args.world_size
    steps = args.num_mini_batches * args.num_ppo_epochs
    say(
        f"rollout: {prompts} prompts x {args.num_generations} completions on {args.world_size} process(es), "
        f"trained on for {steps} optimizer steps ({args.num_ppo_epochs} passes of {args.num_mini_batches})"
    )
    if prompts > num_rows:
        findings.remarks.append(
            f"a rollout asks for {prompts} prompts and there are {num_rows} rows, which then repeat"
        )
    if args.max_steps > 0 and args.max_steps % steps:
        findings.remarks.append(
            f"`max_steps={args.max_steps}` is no multiple of the {steps} steps per rollout"
        )


def show_memory(backbone: Backbone) -> None:
    """Which parts train, and the memory that is certain: weights, gradients and AdamW's two moments."""
    counts = parameter_counts(backbone)
    rows = [(part, f"{total:,}", f"{trained:,}") for part, (total, trained) in counts.items()]
    say("\n" + table(("model part", "parameters", "that train"), rows))
    weights = sum(each.numel() * each.element_size() for each in backbone.model.parameters())
    trained = [each for each in backbone.model.parameters() if each.requires_grad]
    gradients = sum(each.numel() * each.element_size() for each in trained)
    say(f"\nmemory: weights {mib(weights)}, gradients {mib(gradients)}, optimizer {mib(2 * gradients)}")


def show_parts(backbone: Backbone, findings: Findings) -> None:
    """As `show_memory`, and what keeps such a model from being trained on completions."""
    show_memory(backbone)
    if not any(each.requires_grad for each in backbone.model.parameters()):
        findings.problems.append("nothing trains; set `use_peft: true` or name parts in `trainable`.")
    if not backbone.end_ids:
        findings.problems.append(
            "neither the model nor its tokenizer has an end-of-sequence token, so completions never end; "
            "set `eos_token` in the tokenizer's config."
        )
    if not backbone.caches_encodings:
        findings.remarks.append(
            "vision, projector or input embeddings train (or carry adapters): nothing is cached"
        )


def show_algorithm(config: RunConfig, backbone: Backbone) -> None:
    """How it trains, and what is kept beside the policy for that."""
    trainer = ALGORITHMS[config.script.algorithm].load_trainer()
    critic = "a value head" if trainer.needs_critic(config.training) else "none"
    reference = "none"
    if trainer.needs_reference(config.training):
        copied = bool(trained_pretrained_weights(backbone.model))
        reference = "a frozen copy of the weights that train" if copied else "the policy without its adapters"
    say(f"\nmethod: {method(config)}\ncritic: {critic}; reference policy: {reference}")


def try_one_group(
    config: RunConfig,
    backbone: Backbone,
    rewards: Rewards,
    rows: PromptDataset,
    held_out: PromptDataset | None,
    findings: Findings,
) -> None:
    """One group of completions, sampled and judged or read from the data: a backward pass and no update."""
    with tempfile.TemporaryDirectory() as folder:  # the Trainer makes its output folder at once
        args = dataclasses.replace(config.training, output_dir=folder)
        trainer = make_trainer(dataclasses.replace(config, training=args), backbone, rewards, rows, None)
    if is_offline(config):
        prompts, completions = given_group(trainer, findings)
        if held_out is not None and rewards.optimised:
            try_rewards(trainer, rewards, held_out, findings)
    else:
        judged = try_rewards(trainer, rewards, rows, findings)
        totals = judged.judgement.total.tolist()
        if len(totals) > 1 and len(set(totals)) == 1 and bool(judged.judgement.valid.any()):
            findings.remarks.append(
                "all completions of the first row got the same reward: nothing tells the better ones"
            )
        findings.attempt(lambda: trainer.learn_from(0, [0], judged))  # which the algorithm may refuse
        prompts, completions = judged.prompts, judged.samples.completions
    scores = trainer.actor_critic(prompts, completions, temperature=args.temperature)
    loss = scores.logps[completions.mask].mean()
    if scores.values is not None:
        loss = loss + scores.values[completions.mask].mean()
    loss.backward()
    trainer.actor_critic.zero_grad(set_to_none=True)
    show_scoring(trainer)
    # A reference policy of the same weights serves as the copy.
    if trainer.regularizer is not None and trainer.regularizer.num_copied:
        say(f"regularisation: keeps a copy of {trainer.regularizer.num_copied:,} pretrained numbers")
    say(f"\npeak memory after one group, with gradients: {mib(peak_memory())}{gpu_peak()}")


def try_rewards(trainer: OnlineTrainer, rewards: Rewards, rows: PromptDataset, findings: Findings) -> Judged:
    """Samples the completions of the first row and has them judged."""
    args = trainer.args
    noise = sample_noise(args.seed, 0, range(args.num_generations), args.max_completion_length)
    judged = trainer.collector.judge([rows[0]], args.sampling_params(), noise, rewards=trainer.eval_suite)
    show_lengths(trainer, judged, findings)
    show_rewards(judged, findings)
    check_protocol(rewards.optimised, trainer, judged, findings)
    return judged


def given_group(trainer: OnlineTrainer, findings: Findings) -> tuple[Prompts, Completions]:
    """The first completions that offline training would learn from, and what all of them are like."""
    offline: OfflineRows = cast(Any, trainer).offline_rows
    batch = trainer.collect(0).take([0])
    lengths = [len(ids) for ids in offline.ids]
    num_cut, num_rows = int(offline.cut.sum()), len(lengths)
    say(
        f"\ncompletions: {num_rows:,} of {len(set(offline.groups.tolist())):,} prompts, {min(lengths)} to "
        f"{max(lengths)} tokens\nrewards: {float(offline.rewards.min()):.3f} to "
        f"{float(offline.rewards.max()):.3f}, mean {float(offline.rewards.mean()):.3f}\n"
        f"one pass: {trainer.plan.rollouts_per_epoch * trainer.plan.steps_per_rollout:,} optimizer steps"
    )
    if num_cut:
        findings.remarks.append(
            f"{num_cut} of {num_rows} completions are cut at `max_completion_length="
            f"{trainer.args.max_completion_length}` tokens, and teach no end"
        )
    if offline.rewards.min() == offline.rewards.max():
        findings.remarks.append("all rewards are the same: this is plain supervised training")
    return batch.prompts, batch.completions


def show_scoring(trainer: OnlineTrainer) -> None:
    """Whether prompts are shared."""
    verification = trainer.collector.verification
    if verification is not None:
        say(f"scoring: {'packed' if verification.packed else 'plain'}; {verification.reason}")


def show_lengths(trainer: OnlineTrainer, judged: Judged, findings: Findings) -> None:
    """Prompt and completion lengths."""
    args, backbone = trainer.args, trainer.actor_critic.backbone
    prompt = trainer.collector.encoder.inputs(judged.rows[0]).tensors["input_ids"].shape[-1]
    lengths = judged.samples.completions.lengths.tolist()
    say(
        f"\nlengths: prompt {prompt} tokens with {len(judged.rows[0].images)} picture(s), completions "
        f"{min(lengths)} to {max(lengths)} of at most {args.max_completion_length}"
    )
    limit = getattr(backbone.text_config, "max_position_embeddings", None)
    if limit is not None and prompt + args.max_completion_length > limit:
        findings.problems.append(
            f"prompt ({prompt}) and `max_completion_length` ({args.max_completion_length}) exceed the "
            f"model's {limit} positions; shorten completions or use smaller pictures."
        )
    if not bool(judged.samples.ended.any()):
        findings.remarks.append(
            f"no completion ended in `max_completion_length={args.max_completion_length}` tokens; allow more"
        )


def show_rewards(judged: Judged, findings: Findings) -> None:
    """What the rewards gave the group."""
    say("\nrewards of the first row's completions:")
    totals = judged.judgement.total.tolist()
    for total, text in zip(totals, judged.texts[0], strict=True):
        say(f"  {number(total)}  {' '.join(text.split())}")
    for name, values in judged.judgement.components.items():
        known = [value for value in values if value == value]
        say(f"  {name}: " + (f"mean {sum(known) / len(known):.3f}" if known else "could not judge any"))
    seconds = ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in judged.judgement.seconds.items())
    say(f"  time: {seconds}")
    if not bool(judged.judgement.valid.any()):
        findings.problems.append(
            "no reward could judge the first row; are the columns there that it reads (`rename_columns`)?"
        )


def check_protocol(
    rewards: list[RewardFunction], trainer: OnlineTrainer, judged: Judged, findings: Findings
) -> None:
    """Asks each reward in the ways a long run may: other orders, one sample, empty texts, missing columns.

    What it answers wrongly is a remark: this run's data may never ask it so. Asynchronous rewards, most often
    paid services, and those that learn from the data are left out."""
    ids = ids_by_row(judged.samples.completions, len(judged.rows))
    batch = reward_batch(judged.rows, judged.texts, ids, trainer.state)
    for name, reward in zip(trainer.reward_suite.names, rewards, strict=True):
        if is_async(reward) or is_two_phase(reward) or hasattr(reward, "prepare"):
            continue
        arguments = {"prompts": batch.prompts, "completions": batch.completions} | batch.columns
        try:
            reward_checker()(reward, **arguments)
        except ValueError as error:
            findings.remarks += [f"reward {name!r}: {line[2:]}" for line in str(error).split("\n")[1:]]


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS


def gpu_peak() -> str:
    """The largest GPU memory so far, in words; nothing without a GPU."""
    return f", on the GPU {mib(torch.cuda.max_memory_allocated())}" if torch.cuda.is_available() else ""


def mib(num_bytes: float) -> str:
    """A size in words."""
    return f"{num_bytes / 2**20:,.1f} MiB"
