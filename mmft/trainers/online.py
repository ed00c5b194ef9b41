"""The base of the online trainers: rollouts as the data source of the Hugging Face training loop.

An algorithm adds its settings, `add_targets` (advantages, returns, weights) and `compute_policy_loss`; see
`trainers.ppo`. How held-out samples are reported lives in `trainers.held_out`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, set_seed

from mmft.data.rows import PromptDataset, as_prompts
from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.attribution import Attribution
from mmft.engine.judging import RewardSuite
from mmft.engine.prompt_encoder import PromptEncoder
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.engine.scoring import Scores
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone, as_backbone
from mmft.trainers.callbacks import RewardProgress
from mmft.trainers.collector import Collector, Judged
from mmft.trainers.config import OnlineConfig
from mmft.trainers.experience import Experience
from mmft.trainers.held_out import (
    held_out_batches,
    held_out_means,
    held_out_samples,
    masked_counts,
    token_records,
)
from mmft.trainers.metric_log import MetricLog
from mmft.trainers.modality_use import ImportanceLog, explain_rollout
from mmft.trainers.reward_state import check_reward_state, load_reward_state, save_reward_state
from mmft.trainers.rollouts import RolloutTrainer
from mmft.trainers.schedule import RolloutPlan, Ticket
from mmft.trainers.tracked_samples import TrackedSamples
from mmft.types import RewardFunction

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.utils.data import DataLoader

EVALUATION = -1
"""The number of the rollout whose noise held-out completions are drawn with."""
Rows: TypeAlias = "PromptDataset | Dataset | Sequence[Mapping[str, Any]]"


class OnlineTrainer(RolloutTrainer, abc.ABC):
    """Trains a policy on completions that it samples itself.

    Args:
        model: hub id or folder, a transformers model, a `Backbone`, or a `VLMActorCritic`.
        reward_funcs: one callable or several; see `mmft.types.RewardFunction`.
        args: the algorithm's config.
        train_dataset: rows with `image`/`images`, `prompt` and any columns the rewards read.
        eval_dataset: held-out rows, decoded greedily by `evaluate`.
        processing_class: the processor; the checkpoint's own by default.
        callbacks: added to the Trainer's.
        optimizers: as in `transformers.Trainer`.
        peft_config: adapters to train instead of the language model's weights.
        eval_funcs: more reward-shaped callables that `evaluate` reports and training never sees.
    """

    args: OnlineConfig
    experience: Experience | None
    train_dataset: Any  # a PromptDataset or None; transformers declares datasets of torch
    eval_dataset: Any

    def __init__(
        self,
        model: str | PreTrainedModel | Backbone | VLMActorCritic,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        args: OnlineConfig,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
        eval_funcs: Sequence[RewardFunction] = (),
    ) -> None:
        reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or ())
        if not reward_funcs:
            raise ConfigError("`reward_funcs` is empty; give at least one reward function.")
        set_seed(args.seed)  # adapters are drawn here, before the Trainer seeds itself
        actor_critic = self._make_actor_critic(model, args, processing_class, peft_config)
        self.reward_suite = RewardSuite(reward_funcs, args.reward_weights, isolation=args.isolation())
        # Evaluation reports the optimised rewards and the others, the latter with weight 0.
        weights = [*self.reward_suite.weights, *(0.0 for _ in eval_funcs)]
        self.eval_suite = RewardSuite([*reward_funcs, *eval_funcs], weights, isolation=args.isolation())
        self.eval_suite.left_behind = self.reward_suite.left_behind
        super().__init__(
            actor_critic,
            args=args,
            train_dataset=as_prompts(train_dataset, "train"),
            eval_dataset=as_prompts(eval_dataset, "eval"),
            processing_class=actor_critic.backbone.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.last_judged: Judged | None = None
        self._importance = ImportanceLog(args.importance_steps, self.metric_log, sharded=self._is_sharded)
        RewardProgress.install(self)
        TrackedSamples.install(self)
        self._connect_rewards()
        self.actor_critic = actor_critic
        self.collector = Collector(
            actor_critic,
            PromptEncoder(actor_critic.backbone, args.feature_cache_mb * 2**20, shares=not self._is_sharded),
            self.reward_suite,
            self.metric_log,
            anyone=self._anyone,
            anyone_open=self._anyone if self._is_sharded else lambda is_open: is_open,
            autocast=self.accelerator.autocast,
        )

    def _make_actor_critic(
        self, model: Any, args: OnlineConfig, processor: Any, peft_config: PeftConfig | None
    ) -> VLMActorCritic:
        critic = self.needs_critic(args)
        if isinstance(model, VLMActorCritic):
            if critic != (model.value_head is not None):
                raise ConfigError(
                    f"`model` was built with `critic={not critic}`, and {type(self).__name__} with these "
                    f"settings {'needs a' if critic else 'has no use for a'} critic. Build it with "
                    f"`critic={critic}`."
                )
            return model
        model = as_backbone(model, processor, peft_config)
        return VLMActorCritic(model, critic=critic, reference=self.needs_reference(args))

    def _connect_rewards(self) -> None:
        """Lets rewards see the training rows, and the other processes."""
        if self.accelerator.num_processes > 1:
            for suite in (self.reward_suite, self.eval_suite):
                suite.gather = lambda obj: gather_object([obj])
        if self.train_dataset is not None:
            self.eval_suite.prepare(self.train_dataset.column)  # it holds the optimised rewards too
        check_reward_state(self.eval_suite)

    # What an algorithm defines

    @classmethod
    def needs_critic(cls, args: Any) -> bool:
        """Whether this algorithm, so configured, learns a value function."""
        return False

    @classmethod
    def needs_reference(cls, args: Any) -> bool:
        """Whether log-probs of the pretrained policy are part of this algorithm's loss or reward."""
        return False

    @classmethod
    def needs_old_logps(cls, args: Any) -> bool:
        """Whether updates compare the policy with the one that sampled."""
        return True

    @property
    def discount(self) -> float:
        """Per token; what dense rewards assume."""
        return 1.0

    def scoring_options(self) -> dict[str, Any]:
        """What the loss wants of the model's forward beside log-probs and values."""
        return {}

    @abc.abstractmethod
    def add_targets(self, experience: Experience) -> Experience:
        """Sets advantages and returns from scores, values and log-probs, over all processes."""

    @abc.abstractmethod
    def compute_policy_loss(self, scores: Scores, batch: Experience, num_tokens: Tensor) -> Tensor:
        """The loss of one micro-batch: the sum over its tokens, by `num_tokens` of the optimizer step."""

    # Rollouts as a data source

    @property
    def plan(self) -> RolloutPlan:
        """The rollout arithmetic of this run."""
        args = self.args
        return RolloutPlan(
            num_rows=len(self.train_dataset),
            groups_per_micro_batch=args.per_device_train_batch_size // args.num_generations,
            num_micro_batches=args.gradient_accumulation_steps,
            num_mini_batches=args.num_mini_batches,
            num_epochs=args.num_ppo_epochs,
            num_processes=self.accelerator.num_processes,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def get_train_dataloader(self) -> DataLoader[Ticket]:
        """Tickets; `_prepare_inputs` turns them into micro-batches of a rollout."""
        if self.train_dataset is None:
            raise ConfigError("`train_dataset` is missing; training needs rows to sample prompts from.")
        return super().get_train_dataloader()

    def collect(self, number: int) -> Experience:
        """Draws and judges the completions of one rollout on this process, with advantages."""
        args, plan, process = self.args, self.plan, self.accelerator.process_index
        indices = plan.rows(number, process)
        rows = [self.train_dataset[index] for index in indices]
        first = plan.first_sample(process, args.num_generations)
        samples = range(first, first + len(rows) * args.num_generations)
        with self.metric_log.timed("rollout"):
            judged = self.collector.judge(
                rows,
                args.sampling_params(),
                sample_noise(plan.seed, number, samples, args.max_completion_length),
                batch_size=args.rollout_batch_size,
                trainer_state=self.state,
                discount=self.discount,
            )
            experience = self.learn_from(number, indices, judged)
        self._log_rollout(judged, experience)
        return experience

    def learn_from(self, number: int, indices: list[int], judged: Judged) -> Experience:
        """What the judged completions of these rows teach: the experience with its targets."""
        experience = self.collector.to_experience(
            number,
            indices,
            judged,
            kl=self.needs_reference(self.args),
            old_logps=self.needs_old_logps(self.args),
            temperature=self.args.temperature,
            size=self.plan.groups_per_micro_batch,
        )
        return self.add_targets(experience)

    def _log_rollout(self, judged: Judged, experience: Experience) -> None:
        log, lengths = self.metric_log, experience.completions.lengths.float()
        valid = judged.judgement.valid
        log.add_all("reward", judged.judgement.total[valid].tolist())
        groups = judged.judgement.total.view(len(judged.rows), -1)
        log.add_all("reward_std_in_group", groups.std(1, correction=0).tolist())
        for name, values in judged.judgement.components.items():
            log.add_all(f"rewards/{name}", values)
        log.add("rewards/unjudged_share", float((~valid).float().mean()), len(valid))
        log.add_all("completions/mean_length", lengths.tolist())
        log.count("completions/num_tokens", float(lengths.sum()))
        log.add("completions/no_eos_share", float((~experience.ended).float().mean()), len(valid))
        log.add("cache/hit_rate", self.collector.encoder.cache.hit_rate)
        self.last_judged = judged

    # One update

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `RolloutTrainer`; now and then logs what completions of the rollout hang on."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._importance.look(self.state.global_step, self._explain_some)
        return loss

    def _explain_some(self) -> list[Attribution]:
        if self.experience is None:
            return []
        args, rows = self.args, self.train_dataset
        number = self.state.global_step // args.importance_steps
        options: dict[str, Any] = {"temperature": args.temperature, "method": args.importance_method}
        with self.accelerator.autocast():
            return explain_rollout(self.actor_critic, self.experience, rows, number, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Scores a micro-batch with gradients and applies the algorithm's objective."""
        batch, num_tokens = inputs["batch"], inputs["num_tokens"]
        options = self.scoring_options()
        scores = model(batch.prompts, batch.completions, temperature=self.args.temperature, **options)
        loss = self.compute_policy_loss(scores, batch, num_tokens)
        loss = self._checked_loss(loss, batch.rows, "the rewards of these rows")
        entropies = scores.entropies[batch.train_mask].detach()
        self.metric_log.add("entropy", float(entropies.mean()) if len(entropies) else 0.0, len(entropies))
        return loss

    # Evaluation

    def evaluate(
        self,
        eval_dataset: Rows | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Decodes one completion per held-out row; reports the mean of every reward.

        Sampled ones (`eval_temperature` > 0) draw the same noise each time, so that evaluations of one run
        differ by their policies alone."""
        dataset = self.eval_dataset if eval_dataset is None else as_prompts(eval_dataset, "eval")
        if dataset is None:
            raise ConfigError("`eval_dataset` is missing; `evaluate` needs held-out rows.")
        process, count = self.accelerator.process_index, self.accelerator.num_processes
        size, masked = self.args.per_device_eval_batch_size, MetricLog()
        samples: list[dict[str, Any]] = []
        for indices, fresh in held_out_batches(len(dataset), size, process, count):
            judged = self.answer_held_out(dataset, indices)
            samples += held_out_samples(indices, judged, self.held_out_tokens(judged))[:fresh]
            for name, number in masked_counts(judged, fresh).items():
                masked.count(name, number)
        self.eval_samples = sorted(gather_object(samples), key=lambda sample: sample["row"])
        self.eval_rows = dataset  # which rows those are
        means = held_out_means(self.eval_samples) | masked.flush()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def answer_held_out(self, rows: PromptDataset, indices: Sequence[int]) -> Judged:
        """One completion of each of these rows, judged by every reward; collective. Nothing is logged."""
        length, temperature = self.args.max_completion_length, self.args.eval_temperature
        log = self.collector.metrics
        self.collector.metrics = MetricLog()  # evaluation's seconds are not the training step's
        try:
            return self.collector.judge(
                [rows[index] for index in indices],
                SamplingParams(num_generations=1, max_completion_length=length, temperature=temperature),
                sample_noise(self.args.seed, EVALUATION, indices, length) if temperature else None,
                rewards=self.eval_suite,
                trainer_state=self.state,
                training=False,
            )
        finally:
            self.collector.metrics = log

    def held_out_tokens(self, judged: Judged) -> list[dict[str, Any]]:
        """What each token of held-out completions was; with sharded weights collective."""
        judged = self.collector.with_values(judged)
        return token_records(self.processing_class, judged, self.held_out_advantages(judged))

    def held_out_advantages(self, judged: Judged) -> Tensor | None:
        """(N, R) how much better each token was than expected; None where nothing tells tokens apart."""
        return None

    # Processes and checkpoints

    def read_rollout(self, path: Path) -> Experience:
        """The rollout that a checkpoint was saved in the middle of, its prompts encoded again."""
        return self.collector.restore(str(path), self.train_dataset, self.args.temperature)

    @property
    def _origin(self) -> dict[str, Any]:
        return {"trainer": type(self).__name__, "critic": self.needs_critic(self.args)}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_reward_state(self.eval_suite, output_dir or cast(str, self.args.output_dir))

    def load_state(self, folder: Path) -> None:
        """As in `RolloutTrainer`, and what rewards have learned."""
        super().load_state(folder)
        load_reward_state(self.eval_suite, str(folder))
