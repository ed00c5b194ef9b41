"""The base of trainers in environments: the agent, its environments, episodes that are counted, evaluation.

`trainers.dqn` learns action values from a replay buffer; `trainers.agent_rollouts` is the base of those that
learn from rollouts of their own policy.
"""

from __future__ import annotations

import abc
import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import gymnasium
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, set_seed

from mmft.data.normalize import FeatureTransform
from mmft.engine.agent import OWN_PARTS, States, VLMAgent
from mmft.engine.attribution import Attribution, Method
from mmft.engine.environment_pool import EnvironmentPool, Episode
from mmft.engine.observations import ObservationReader
from mmft.engine.playing import BLANKS, Noise, Player
from mmft.engine.stored_observations import TextTable
from mmft.environments.making import make_environment
from mmft.errors import ConfigError
from mmft.exploration.actions import draw, uniform_probs
from mmft.models.backbone import Backbone, as_backbone
from mmft.models.modalities import Modalities
from mmft.trainers.actor_critic import split_off
from mmft.trainers.agent_config import AgentConfig
from mmft.trainers.callbacks import EpisodeProgress
from mmft.trainers.held_out_episodes import episode_means, play_episodes
from mmft.trainers.modality_use import ImportanceLog, explain_seen
from mmft.trainers.resuming import ResumableTrainer

MakeEnvironment = Callable[[], "gymnasium.Env[Any, Any]"]


class AgentTrainer(ResumableTrainer, abc.ABC):
    """Trains a vision-language model that acts in environments.

    Args:
        model: hub id or folder, a transformers model, a `Backbone`, or a `VLMAgent`. Named models are frozen
            unless `peft_config` is given.
        env: the id of an environment, or a callable that makes one (see `mmft.environments`).
        args: the algorithm's config.
        env_kwargs: arguments of the environment, where `env` is an id.
        eval_env: where `evaluate` plays; by default `env`, in episodes that training does not see.
        processing_class: the processor; the checkpoint's own by default.
        callbacks: added to the Trainer's.
        optimizers: as in `transformers.Trainer`.
        peft_config: adapters that train with the heads.

    Attributes:
        agent: the model and its heads.
        player: the environments of this process.
    """

    kind: ClassVar[str]
    """Of agent: `q` or `actor_critic`."""
    args: AgentConfig
    eval_dataset: Any  # the numbers of the episodes; transformers declares datasets of torch

    def __init__(
        self,
        model: str | PreTrainedModel | Backbone | VLMAgent,
        env: str | MakeEnvironment,
        args: AgentConfig,
        *,
        env_kwargs: Mapping[str, Any] | None = None,
        eval_env: str | MakeEnvironment | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        set_seed(args.seed)  # heads and adapters are drawn here, before the Trainer seeds itself
        self.environment, self._make = _maker(env, env_kwargs)
        self._eval_environment, self._make_eval = (
            (self.environment, self._make)
            if eval_env is None
            else _maker(eval_env, env_kwargs if isinstance(eval_env, str) else None)
        )
        self._env_kwargs = json.loads(json.dumps(dict(env_kwargs or {}), default=str))
        self.player = Player(
            *self._environments(self._make, args.num_envs, args.seed, args, self.environment)
        )
        self._num_restarts_logged = 0
        agent = self._make_agent(model, args, processing_class, peft_config)
        self.noise = Noise(args.seed, args.process_index)
        self.texts = TextTable()
        self.eval_episodes: list[Episode] = []
        super().__init__(
            agent,
            args=args,
            callbacks=callbacks,
            optimizers=optimizers,
            eval_dataset=range(args.eval_episodes),
            processing_class=agent.backbone.processor,
        )
        self.agent = agent
        if self._is_sharded:
            raise ConfigError(
                "agents act between optimizer steps, for which sharded weights (FSDP, ZeRO 3) would have to "
                "be gathered each time. Use DDP."
            )
        EpisodeProgress.install(self)
        self._importance = ImportanceLog(args.importance_steps, self.metric_log)

    def _environments(
        self, make: MakeEnvironment, num_envs: int, seed: int, args: AgentConfig, name: str
    ) -> tuple[EnvironmentPool, ObservationReader]:
        pool = EnvironmentPool(
            make,
            num_envs,
            name=name,
            seed=seed,
            first=args.process_index * num_envs,
            time_limit=args.env_time_limit,
            max_restarts=args.max_env_restarts,
        )
        spaces = pool.observation_space, pool.action_space
        return pool, ObservationReader(*spaces, environment=name, **args.reading())

    def _make_agent(self, model: Any, args: AgentConfig, processor: Any, peft_config: Any) -> VLMAgent:
        if isinstance(model, VLMAgent):
            return self._checked_agent(model)
        return VLMAgent(
            as_backbone(model, processor, peft_config, trainable=() if peft_config is None else None),
            self.agent_spec(args),
            cache_bytes=args.feature_cache_mb * 2**20,
            encode_batch_size=args.encode_batch_size,
        )

    def agent_spec(self, args: Any) -> Any:
        """The agent that these settings and environments ask for."""
        return args.agent_spec(self.kind, self.player.reader)

    def _checked_agent(self, agent: VLMAgent) -> VLMAgent:
        reader, spec = self.player.reader, agent.spec
        for name, found, wanted in (
            ("kind", spec.kind, self.kind),
            ("num_actions", spec.num_actions, reader.num_actions),
            ("num_numbers", spec.num_numbers, reader.num_numbers),
        ):
            if found != wanted:
                raise ConfigError(
                    f"`model` is an agent with {name}={found!r}, but {type(self).__name__} on "
                    f"{self.environment!r} needs {wanted!r}. Build it for this environment and algorithm."
                )
        for name, parameter in agent.named_parameters():
            if name.startswith(OWN_PARTS):  # nothing trains in an agent as `load_agent` gives it
                parameter.requires_grad_(True)
        return agent

    # Acting

    def states(self, observations: Sequence[Any]) -> States:
        """What the heads read of observations: embeddings, or where the backbone trains they themselves."""
        if self.agent.trains_backbone:
            return observations
        return self.agent.encoder.encode(observations)

    def begin(self) -> None:
        """Before the first step of a run: begins the episodes, or the resumed ones again."""
        self.player.start()

    @abc.abstractmethod
    def act(self, observations: Sequence[Any], legal: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) greedy actions and the (B, A) scores (Q-values or probabilities) that they are the best of."""

    def _act_at_random(self, observations: Sequence[Any], legal: Tensor) -> tuple[Tensor, Tensor]:
        """What an agent does before its features have statistics: any legal action."""
        probs = uniform_probs(legal)
        self._num_random += 1
        return draw(probs, self.noise.uniforms("evaluation", self._num_random, len(probs))), probs

    def fit_transforms(self, chunks: Sequence[Modalities]) -> None:
        """Takes the statistics of features over the warm-up of all processes.

        Raises:
            ConfigError: the warm-up is too short for PCA.
        """
        try:
            with torch.no_grad():
                self.agent.transforms.fit(chunks, self._exchange)
        except ValueError as error:
            raise ConfigError(
                f"`pca_components` is {self.args.pca_components}, and the warm-up does not tell so many: "
                f"{error} The warm-up is `learning_starts` or `warm_up_steps`."
            ) from error

    def _exchange(self, transform: FeatureTransform) -> None:
        if self.accelerator.num_processes == 1:
            return
        states = gather_object([{n: t.cpu() for n, t in transform.state_dict().items()}])
        transform.load_state_dict(states[0])
        for state in states[1:]:
            other = copy.deepcopy(transform)
            other.load_state_dict(state)
            transform.merge_(other)

    def log_episodes(self) -> None:
        """Adds the episodes that ended since the last call to the log."""
        log = self.metric_log
        for episode in self.player.pool.finished():
            log.add("return", episode.total_reward)
            log.add("episode_length", float(episode.length))
            if episode.success is not None:
                log.add("success", float(episode.success))
            if episode.optimal_return is not None:
                log.add("optimal_return", episode.optimal_return)
        log.count("env_restarts", self.player.pool.num_restarts - self._num_restarts_logged)
        self._num_restarts_logged = self.player.pool.num_restarts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `BaseTrainer`; training logs say how many steps in environments came before."""
        if "loss" in logs:
            logs = logs | {"environment_steps": sum(gather_object([self.player.num_played]))}
        super().log(logs, start_time)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `BaseTrainer`; now and then logs what the decisions of the moment hang on."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._importance.look(self.state.global_step, self._explain_some)
        return loss

    def _explain_some(self) -> list[Attribution]:
        with self.accelerator.autocast():
            return explain_seen(
                self.agent, self.player.observations, method=cast(Method, self.args.importance_method)
            )

    # Evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        *,
        blank: str | None = None,
    ) -> dict[str, float]:
        """Plays `eval_episodes` episodes greedily, the same ones each time, which training never sees.

        Before training has begun, and features have no statistics yet, the agent acts at random.

        Args:
            eval_dataset: not used; the episodes are `eval_env`'s.
            ignore_keys: not used.
            metric_key_prefix: before the names of the metrics.
            blank: `image` or `text`: what the agent is not shown.
        """
        args = self.args
        if blank is not None and blank not in BLANKS:
            raise ConfigError(f"`blank` must be one of {', '.join(BLANKS)}; got {blank!r}.")
        share = -(-args.eval_episodes // args.world_size)
        num_envs, seed = min(args.num_envs, share), args.seed + EVALUATION_SEED
        pool, reader = self._environments(self._make_eval, num_envs, seed, args, self._eval_environment)
        player = Player(pool, reader, BLANKS[blank] if blank else None)
        was_training, self._num_random = self.agent.training, 0
        self.agent.eval()
        try:
            fitted = self.agent.transforms.is_fitted
            episodes = play_episodes(player, self.act if fitted else self._act_at_random, share)
        finally:
            pool.close()
            self.agent.train(was_training)
        found: list[Episode] = gather_object(episodes)
        self.eval_episodes = sorted(found, key=lambda e: (e.number, e.environment))[: args.eval_episodes]
        metrics = {f"{metric_key_prefix}_{n}": v for n, v in episode_means(self.eval_episodes).items()}
        if blank is None:
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    # Optimizer

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`, with the learning rate of fusion and heads."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh and self.args.head_learning_rate is not None:
            apart = ["backbone."]  # and the critic, where it has a rate of its own
            apart += ["value_head."] if getattr(self.args, "critic_learning_rate", None) else []
            heads = {id(p) for n, p in self.agent.named_parameters() if not n.startswith(tuple(apart))}
            split_off(optimizer, heads, lr=self.args.head_learning_rate)
        return optimizer

    # Checkpoints

    @property
    def _origin(self) -> dict[str, Any]:
        return {
            "trainer": type(self).__name__,
            "environment": self.environment,
            "env_kwargs": self._env_kwargs,
            "num_envs": self.args.num_envs,
            "num_processes": self.args.world_size,
            "seed": self.args.seed,
            "feature_sizes": self.agent.encoder.widths,
        }

    @property
    def _environments_file(self) -> str:
        return f"environments_{self.args.process_index}.json"

    def save_state(self, folder: Path) -> None:
        """As in `ResumableTrainer`, and where the environments of this process are."""
        if not self.args.save_only_model:
            state = {"pool": self.player.pool.state_dict(), "num_played": self.player.num_played}
            (folder / self._environments_file).write_text(json.dumps(state), encoding="utf-8")
        super().save_state(folder)

    def load_state(self, folder: Path) -> None:
        """As in `ResumableTrainer`; plays the episodes that were running up to where they were."""
        super().load_state(folder)
        path = folder / self._environments_file
        if not path.is_file():
            raise ConfigError(
                f"`resume_from_checkpoint`: {path.name} is missing in {folder}, so that the environments' "
                "episodes are lost. Resume with as many processes as before, or from another checkpoint."
            )
        state = json.loads(path.read_text(encoding="utf-8"))
        self.player.pool.load_state_dict(state["pool"])
        self.player.num_played = state["num_played"]
        self._num_restarts_logged = self.player.pool.num_restarts
        self.player.start()


EVALUATION_SEED = 1_000_003
"""Added to the seed of the run: evaluation plays episodes that training does not."""


def _maker(env: str | MakeEnvironment, env_kwargs: Mapping[str, Any] | None) -> tuple[str, MakeEnvironment]:
    if isinstance(env, str):
        return env, functools.partial(make_environment, env, dict(env_kwargs or {}))
    if not callable(env):
        raise ConfigError(f"`env` must be an id or a callable that makes an environment; got {env!r}.")
    if env_kwargs:
        raise ConfigError("`env_kwargs` are for an `env` that is an id; bind them to your callable instead.")
    return getattr(env, "__name__", type(env).__name__), env
