"""Reward-weighted likelihood (Peters & Schaal 2007): supervised learning, each sample counted by its reward.

    L = -E[R(s, a) log f(s)]

Online on completions that the policy samples, or offline on rows that were answered and judged beforehand.
No critic, no reference, no ratio: what keeps it stable are weights that are not negative.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mmft._masking import masked_sum
from mmft.engine.completion_batch import CompletionTokenizer
from mmft.engine.reward_calls import no_reward
from mmft.engine.scoring import Scores
from mmft.errors import ConfigError
from mmft.estimators.weights import Baseline, Weighting, check_weighting, check_weights, reward_weights
from mmft.objectives.policy import approximate_kl, reward_weighted_loss
from mmft.trainers.config import OnlineConfig
from mmft.trainers.experience import Experience, given
from mmft.trainers.offline_rows import Chunk, OfflinePlan, OfflineRows
from mmft.trainers.online import OnlineTrainer
from mmft.trainers.schedule import RolloutPlan
from mmft.types import RewardFunction

logger = logging.getLogger(__name__)


@dataclass
class RewardWeightedConfig(OnlineConfig):
    """Settings of `RewardWeightedTrainer`.

    `weighting` is `exponential` unless told otherwise: its weights are never negative, whatever the rewards'
    sign and offset, and have mean 1, so that it can neither diverge nor run dry.

    Offline one pass over the data is one epoch (`num_train_epochs`), `num_generations` is the largest number
    of completions of one prompt that share a forward, and a batch of completions is a rollout: it is trained
    on `num_ppo_epochs` times before the next.

    Example:
        >>> from mmft import RewardWeightedConfig
        >>> args = RewardWeightedConfig(output_dir="runs/example", tau=0.2)
        >>> args.weighting, args.baseline, args.offline
        ('exponential', 'none', False)
    """

    num_ppo_epochs: int = field(default=1, metadata={"help": "Passes over each rollout."})
    weighting: str = field(
        default="exponential",
        metadata={
            "help": "What a sample counts: `exponential` exp((R - b) / tau) scaled to mean 1, `top_fraction` "
            "1 for the best and 0 for the rest, `reward` R itself, `baseline` R - b."
        },
    )
    baseline: str = field(
        default="none",
        metadata={
            "help": "b: `batch`, the mean reward of all samples, `group`, that of the samples of the prompt, "
            "or `none`."
        },
    )
    tau: float = field(
        default=0.1,
        metadata={"help": "Of `exponential`, in units of the reward; small ones listen to the best only."},
    )
    top_fraction: float = field(
        default=0.25, metadata={"help": "Share of samples that `top_fraction` keeps."}
    )
    allow_negative_rewards: bool = field(
        default=False,
        metadata={"help": "Let `weighting: reward` push samples of negative reward away; it may diverge."},
    )
    offline: bool = field(
        default=False,
        metadata={"help": "Train on the columns `completion` and `reward` instead of sampling."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weighting(self.weighting, baseline=self.baseline, tau=self.tau, top_fraction=self.top_fraction)
        if self.baseline == "group" and self.num_generations == 1 and not self.offline:
            raise ConfigError(
                "`baseline: group` compares the completions of a prompt, and `num_generations` is 1. Sample "
                "more of each, or set `baseline: batch`."
            )


class RewardWeightedTrainer(OnlineTrainer):
    """Reward-weighted likelihood on any decoder-style vision-language model; arguments as in `OnlineTrainer`.

    Offline (`RewardWeightedConfig(offline=True)`) `train_dataset` has the columns `completion`, text or
    messages, and `reward`, a finite number; `reward_funcs` may be left out and judge held-out samples only.

    Attributes:
        offline_rows: the rows of an offline run, else None.

    Example:
        >>> from mmft import RewardWeightedConfig, RewardWeightedTrainer
        >>> from mmft.tiny import load_rated_captions
        >>> rows = load_rated_captions("train", 16)  # with the columns `completion` and `reward`
        >>> args = RewardWeightedConfig(output_dir="runs/example", offline=True, max_steps=2)
        >>> trainer = RewardWeightedTrainer("mmft/tiny-captioner", args=args, train_dataset=rows)
        >>> _ = trainer.train()
        >>> trainer.state.global_step
        2
    """

    args: RewardWeightedConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardFunction | Sequence[RewardFunction] = (),
        args: RewardWeightedConfig | None = None,
        *rest: Any,
        **options: Any,
    ) -> None:
        if args is None:
            raise ConfigError("`args` is missing; give a `RewardWeightedConfig`.")
        if args.offline and not callable(reward_funcs) and not reward_funcs:
            reward_funcs = [no_reward]
        self.offline_rows: OfflineRows | None = None
        super().__init__(model, reward_funcs, args, *rest, **options)
        if args.offline and self.train_dataset is not None:
            self._read_offline_rows()

    @classmethod
    def needs_old_logps(cls, args: RewardWeightedConfig) -> bool:
        """Only to log how far the policy moved on a rollout, which after its first step is nowhere."""
        return args.num_ppo_epochs * args.num_mini_batches > 1

    # Weights

    def _weigh(self, rewards: Tensor, groups: Tensor, rows: Tensor) -> Tensor:
        """(N,) weights of N samples, those of all processes, that answer prompts `groups` of rows `rows`."""
        args = self.args
        negative = (rewards < 0).nonzero()
        if args.weighting == "reward" and not args.allow_negative_rewards and len(negative):
            first = int(negative[0])
            raise ConfigError(
                f"row {int(rows[first])} of {self.train_dataset.name!r} has the reward "
                f"{float(rewards[first]):g}, and `weighting: reward` would push that sample away without "
                "bound. Set `weighting: exponential`, raise rewards above 0, or allow it "
                "(`allow_negative_rewards: true`)."
            )
        return reward_weights(
            rewards,
            groups,
            weighting=cast(Weighting, args.weighting),
            baseline=cast(Baseline, args.baseline),
            tau=args.tau,
            top_fraction=args.top_fraction,
            allow_negative=args.allow_negative_rewards,
        )

    def _log_weights(self, weights: Tensor) -> None:
        """Of all judged samples; the same on every process."""
        log = self.metric_log
        if not weights.any():
            log.count("weights/zero_rollouts", float(self.accelerator.process_index == 0))
        if not len(weights):
            return
        log.add("weights/mean", float(weights.mean()))
        log.add("weights/max", float(weights.max()))
        if weights.any() and not (weights < 0).any():
            share = weights.sum() ** 2 / (len(weights) * weights.square().sum())
            log.add("weights/effective_share", float(share))

    def add_targets(self, experience: Experience) -> Experience:
        """Weights over the samples of all processes; `top_fraction` trains on those it takes only."""
        gather, process = self.accelerator.gather, self.accelerator.process_index
        index, count = experience.completions.prompt_index, len(experience.scores)
        rows = torch.tensor(experience.rows, device=index.device)[index]
        rewards, groups = gather(_returns(experience)), gather(index + process * len(experience.rows))
        weights = self._weigh(rewards, groups, gather(rows))
        self._log_weights(weights[~rewards.isnan()])
        own = weights[process * count : (process + 1) * count]
        train_mask = experience.train_mask
        if self.args.weighting == "top_fraction":
            train_mask = train_mask & (own > 0)[:, None]
        return experience.with_tensors(weights=own, train_mask=train_mask)

    def compute_policy_loss(self, scores: Scores, batch: Experience, num_tokens: Tensor) -> Tensor:
        """The weighted negative log-likelihood."""
        logps, mask = scores.logps, batch.train_mask
        loss = reward_weighted_loss(logps, given(batch.weights, "weights"), mask, num_tokens=num_tokens)
        parts = {"policy_loss": loss, "nll": -masked_sum(logps, mask) / num_tokens}
        if batch.old_logps is not None:
            parts["approx_kl"] = approximate_kl(logps, batch.old_logps, mask, num_tokens=num_tokens)
        self.metric_log.add_parts(parts, num_tokens, int(mask.sum()))
        return loss

    # Offline: a batch of given completions in the place of a rollout

    def _read_offline_rows(self) -> None:
        """Checks, weighs and groups all rows; the data set is the batch that weights are relative to."""
        args, backbone = self.args, self.actor_critic.backbone
        tokenize = CompletionTokenizer(backbone, args.max_completion_length)
        rows = self.offline_rows = OfflineRows(self.train_dataset, tokenize)
        self._weights = self._weigh(rows.rewards, rows.groups, torch.arange(len(rows.rewards)))
        check_weights(self._weights, weighting=cast(Weighting, args.weighting))
        keep = self._weights > 0 if args.weighting == "top_fraction" else torch.ones_like(rows.cut)
        self._chunks: list[Chunk] = rows.chunks(keep, args.num_generations)
        self._largest_chunk = max(len(chunk) for chunk in self._chunks)

    @property
    def plan(self) -> RolloutPlan:
        """Offline: the plan of passes over chunks, as many in a micro-batch as its size has room for."""
        plan = super().plan
        if self.offline_rows is None:
            return plan
        room = self.args.per_device_train_batch_size // self._largest_chunk
        return OfflinePlan(**(asdict(plan) | {"num_rows": len(self._chunks), "groups_per_micro_batch": room}))

    def collect(self, number: int) -> Experience:
        """Samples a rollout; offline reads the next completions instead."""
        if self.offline_rows is None:
            return super().collect(number)
        with self.metric_log.timed("rollout"):
            experience = self._read(number, self.offline_rows)
        self._log_weights(self._weights)
        return experience

    def _read(self, number: int, rows: OfflineRows) -> Experience:
        plan, process = cast(OfflinePlan, self.plan), self.accelerator.process_index
        backbone, device = self.actor_critic.backbone, self.args.device
        chunks = [self._chunks[place] for place in plan.rows(number, process)]
        prompts = [rows.prompt(chunk) for chunk in chunks]
        completions = rows.completions(chunks, backbone.pad_id).to(device)
        samples = torch.tensor([row for chunk in chunks for row in chunk])
        fresh = completions.prompt_index < plan.num_fresh(number, process)
        self._log_read(samples[fresh.cpu()], completions.lengths[fresh], rows)
        last = [rows.ids[row][-1] for row in samples.tolist()]
        encoded = self.collector.prompts_of_given(prompts, completions, None, self.args.temperature)
        if self._is_sharded and not self.actor_critic.packed and self._largest_chunk > 1:
            raise ConfigError(
                f"`num_generations` is {self.args.num_generations}: this model scores completions one by "
                "one, and with sharded weights every process must score as many as the others. Set it to 1."
            )
        return Experience(
            number=number,
            rows=[rows.prompt_number(chunk) for chunk in chunks],
            prompts=encoded,
            completions=completions,
            scores=rows.rewards[samples].float().to(device),
            ended=torch.tensor([token in backbone.end_ids for token in last], device=device),
            train_mask=completions.mask & fresh[:, None],
            weights=self._weights[samples].float().to(device),
        )

    def progress(self) -> dict[str, Any]:
        """As in `OnlineTrainer`; offline also by which plan its batches are counted."""
        progress = super().progress()
        return progress if self.offline_rows is None else progress | {"plan": self.plan.fingerprint()}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave; says so where a pass over the data cannot be carried on exactly."""
        super().restore_progress(progress)
        if self.offline_rows is not None and progress.get("plan") != self.plan.fingerprint():
            logger.warning(
                "the checkpoint was made with other rows, batch sizes, seed or number of processes: the pass "
                "over the data that it stopped in may leave rows out or repeat them."
            )

    def _log_read(self, samples: Tensor, lengths: Tensor, rows: OfflineRows) -> None:
        log = self.metric_log
        log.add_all("reward", rows.rewards[samples].tolist())
        log.add_all("completions/mean_length", lengths.float().tolist())
        log.count("completions/num_tokens", float(lengths.sum()))
        log.add_all("cut_share", rows.cut[samples].float().tolist())
        log.add("cache/hit_rate", self.collector.encoder.cache.hit_rate)


def _returns(experience: Experience) -> Tensor:
    """(N,) what each completion earned: its score, and what dense rewards paid for its tokens."""
    if experience.token_rewards is None:
        return experience.scores
    return experience.scores + experience.token_rewards.sum(1)
