"""The base of on-policy trainers in environments: rollouts of all environments at a time, with a critic.

The equations are those of the trainers on tokens (`trainers.actor_critic`): a step stands where a token does.

Shapes: E environments, T steps of a rollout, N = E T, A actions.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmft._masking import zero_outside
from mmft.engine.agent import Decisions, States
from mmft.engine.observations import Observation
from mmft.engine.playing import Played
from mmft.engine.scoring import Scores
from mmft.engine.stored_observations import StoredStates, TextTable
from mmft.errors import ConfigError
from mmft.exploration.actions import draw, uniform_probs
from mmft.models.agent_spec import ACTOR_CRITIC
from mmft.models.decision_heads import action_entropies, action_log_probs
from mmft.models.modalities import Modalities
from mmft.trainers.actor_critic import ActorCriticSettings, ActorCriticTrainer, check_actor_critic
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.agent_config import AgentConfig, steps_per_share
from mmft.trainers.config import check_range
from mmft.trainers.experience import given
from mmft.trainers.schedule import RolloutPlan

ESTIMATORS = ("gae", "td", "monte_carlo")
STEPS_OF_ROLLOUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches")
FIELDS = ("actions", "legal", "train_mask", "old_logps", "values", "advantages", "returns")


@dataclass
class AgentRolloutConfig(ActorCriticSettings, AgentConfig):
    """Settings of `AgentRolloutTrainer`.

    One rollout plays `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` steps on
    each process and is trained on for `num_ppo_epochs` passes of `num_mini_batches` optimizer steps."""

    gamma: float = field(default=0.99, metadata={"help": "Discount per step."})
    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Steps in environments per device in one forward."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps per pass."})
    warm_up_steps: int = field(
        default=512,
        metadata={"help": "Random steps on each process, by whose features scaling and PCA are fitted."},
    )

    def __post_init__(self) -> None:
        for name in (*STEPS_OF_ROLLOUT, "num_envs", "num_ppo_epochs", "warm_up_steps"):
            check_range(self, name, low=1)
        if self.steps_per_rollout % self.num_envs:
            raise ConfigError(
                f"a rollout has {self.steps_per_rollout} steps (`per_device_train_batch_size` x "
                f"`gradient_accumulation_steps` x `num_mini_batches`), which `num_envs={self.num_envs}` "
                "environments cannot share evenly. Make it a multiple."
            )
        super().__post_init__()
        check_actor_critic(self, ESTIMATORS)

    @property
    def steps_per_rollout(self) -> int:
        """Steps of one rollout on each process."""
        micro_batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return micro_batch * self.num_mini_batches

    @property
    def num_rollouts(self) -> int:
        """Rollouts of the whole run."""
        return steps_per_share(self.total_timesteps, self.world_size) // self.steps_per_rollout

    @property
    def num_optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_rollouts * self.num_ppo_epochs * self.num_mini_batches


@dataclass(frozen=True, slots=True)
class Steps:
    """N steps with everything the objective needs, in any order; fields of losses are (N, 1)."""

    number: int
    """Which rollout of the run this is."""
    rows: list[int]
    """(N) the steps' places in their rollout, for messages."""
    states: StoredStates
    """N states, as embeddings or as what was seen."""
    actions: Tensor
    """(N,)"""
    legal: Tensor
    """(N, A)"""
    train_mask: Tensor
    """(N, 1) False where an environment failed."""
    old_logps: Tensor
    """(N, 1) under the policy that acted."""
    values: Tensor
    """(N, 1) of the critic at that time."""
    advantages: Tensor
    """(N, 1)"""
    returns: Tensor
    """(N, 1) what the critic should have said."""

    def take(self, groups: list[int]) -> Steps:
        """The named steps."""
        index = torch.tensor(groups, device=self.actions.device)
        return replace(
            self,
            rows=[self.rows[group] for group in groups],
            states=self.states.take(index),
            **{name: getattr(self, name)[index] for name in FIELDS},
        )

    def save(self, path: Path, fingerprint: dict[str, int]) -> None:
        """Writes everything; `fingerprint` is the plan's."""
        tensors = {name: getattr(self, name) for name in FIELDS} | {"rows": torch.tensor(self.rows)}
        tensors |= {f"states.{name}": tensor for name, tensor in self.states.tensors.items()}
        metadata = {
            "rollout": str(self.number),
            "plan": json.dumps(fingerprint),
            "texts": json.dumps(self.states.texts.known),
        }
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, path, metadata)


def load_steps(path: Path, device: torch.device) -> Steps:
    """What `Steps.save` wrote."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    rows = tensors.pop("rows").tolist()
    states = {n.removeprefix("states."): tensors.pop(n) for n in list(tensors) if n.startswith("states.")}
    stored = StoredStates(states, TextTable(json.loads(metadata["texts"])))
    return Steps(number=int(metadata["rollout"]), rows=rows, states=stored, **tensors)


@dataclass(slots=True)
class _Recorded:
    """A rollout under way: per step of all environments what was seen, said, done and earned."""

    states: list[StoredStates] = field(default_factory=list)
    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, states: StoredStates, **columns: Tensor) -> None:
        self.states.append(states)
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)

    def stacked(self, device: torch.device) -> dict[str, Tensor]:
        """The columns, each (E, T, ...)."""
        return {name: torch.stack(column, dim=1).to(device) for name, column in self.columns.items()}


class AgentRolloutTrainer(AgentTrainer, ActorCriticTrainer, abc.ABC):
    """Actor-critic in environments; arguments as in `AgentTrainer`."""

    kind: ClassVar[str] = ACTOR_CRITIC
    args: AgentRolloutConfig
    experience: Steps | None

    @property
    def plan(self) -> RolloutPlan:
        """The rollout arithmetic of this run."""
        args = self.args
        return RolloutPlan(
            num_rows=args.steps_per_rollout * self.accelerator.num_processes,
            groups_per_micro_batch=args.per_device_train_batch_size,
            num_micro_batches=args.gradient_accumulation_steps,
            num_mini_batches=args.num_mini_batches,
            num_epochs=args.num_ppo_epochs,
            num_processes=self.accelerator.num_processes,
            seed=args.seed,
        )

    # Acting

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], legal: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) likeliest actions and the (B, A) probabilities of all."""
        decisions = self._decide(self.states(observations), legal)
        probs = given(decisions.logits, "logits").softmax(1).cpu()
        return probs.argmax(1), probs

    def _decide(self, states: States, legal: Tensor) -> Decisions:
        decisions: Decisions = self.agent(states, legal.to(self.args.device))
        return decisions

    @torch.no_grad()
    def collect(self, number: int) -> Steps:
        """Plays one rollout on this process; advantages and returns are computed over whole episodes."""
        self.agent.eval()
        if not self.player.observations:
            self.begin()
        if not self.agent.transforms.is_fitted:
            self._warm_up()
        with self.metric_log.timed("rollout"):
            recorded = _Recorded()
            for step in range(self.args.steps_per_rollout // self.args.num_envs):
                self._play_one(recorded, number, step)
            steps = self._learn_from(number, recorded)
        self.log_episodes()
        self.agent.train()
        return steps

    def _warm_up(self) -> None:
        """Random play, of which nothing is kept but the statistics of features."""
        chunks: list[Modalities] = []
        for number in range(-(-self.args.warm_up_steps // self.args.num_envs)):
            chunks.append(self.agent.encoder.encode(self.player.observations))
            uniforms = self.noise.uniforms("warm-up", number, self.args.num_envs)
            self.player.play(draw(uniform_probs(self.player.legal), uniforms))
        self.fit_transforms(chunks)
        self.player.pool.finished()  # random episodes are no result

    def _play_one(self, recorded: _Recorded, number: int, step: int) -> None:
        states, legal = self.states(list(self.player.observations)), self.player.legal
        decisions = self._decide(states, legal)
        logits, values = given(decisions.logits, "logits"), given(decisions.values, "values")
        uniforms = self.noise.uniforms(f"act {step}", number, len(legal))
        actions = draw(logits.softmax(1).cpu(), uniforms)
        logps = action_log_probs(logits, actions.to(logits.device)).cpu()
        played = self.player.play(actions)
        recorded.add(
            StoredStates.of(states, self.texts),
            actions=actions,
            legal=legal,
            logps=logps,
            values=values.cpu(),
            final_values=self._final_values(played),
            rewards=played.rewards,
            terminated=played.terminated,
            last=played.last,
            failed=played.failed,
        )

    def _final_values(self, played: Played) -> Tensor:
        """(E,) V of the states that truncated episodes ended in, elsewhere 0."""
        values = torch.zeros(len(played.finals))
        ended = [n for n, final in enumerate(played.finals) if final is not None and not played.failed[n]]
        if ended:
            finals = [final for n in ended if (final := played.finals[n]) is not None]
            decided = self.agent(self.states(finals)).values
            values[ended] = decided.cpu()
        return values

    def _learn_from(self, number: int, recorded: _Recorded) -> Steps:
        """The steps with their targets."""
        seen = recorded.stacked(self.args.device)
        values, failed, last = seen["values"], seen["failed"], seen["last"]
        # What follows a step is the next state, the final one of a truncated episode, or after the window's
        # last step the state that waits there. A step that failed is a gap, which ends the episode before it.
        decided = self._decide(self.states(self.player.observations), self.player.legal)
        following = torch.cat([values[:, 1:], given(decided.values, "values")[:, None]], dim=1)
        next_values = torch.where(last & ~failed, seen["final_values"], following)
        mask = ~failed
        advantages, returns = self.advantages_and_returns(
            seen["rewards"], values, next_values, mask, terminated=seen["terminated"], last=last
        )
        columns = {
            "train_mask": mask,
            "old_logps": seen["logps"],
            "values": values,
            "advantages": zero_outside(advantages, mask),
            "returns": zero_outside(returns, mask),
        }
        return Steps(
            number=number,
            rows=list(range(values.numel())),
            states=StoredStates.cat(recorded.states).take(_by_environment(*values.shape)),
            actions=seen["actions"].flatten(),
            legal=seen["legal"].flatten(0, 1),
            **{name: column.reshape(-1, 1) for name, column in columns.items()},
        )

    # One update

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `ActorCriticTrainer`; where passes were cut short, the run ends with its last rollout all the
        same."""
        loss = super().training_step(*args, **kwargs)
        if self.clock.rollout >= self.args.num_rollouts:
            self.control.should_training_stop = True
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Scores a micro-batch with gradients and applies the algorithm's objective."""
        batch, num_tokens = inputs["batch"], inputs["num_tokens"]
        decisions: Decisions = model(batch.states.restored(self.args.device), batch.legal)
        logits, values = given(decisions.logits, "logits"), given(decisions.values, "values")
        scores = Scores(
            logps=action_log_probs(logits, batch.actions)[:, None],
            entropies=action_entropies(logits)[:, None],
            values=values[:, None],
        )
        loss = self.compute_policy_loss(scores, batch, num_tokens)
        entropies = given(scores.entropies, "entropies")[batch.train_mask].detach()
        self.metric_log.add_all("entropy", entropies.tolist())
        return self._checked_loss(loss, batch.rows, f"the rewards of {self.environment!r}")

    # Checkpoints

    def read_rollout(self, path: Path) -> Steps:
        """The rollout that a checkpoint was saved in the middle of."""
        return load_steps(path, self.args.device)


def _by_environment(num_envs: int, num_steps: int) -> Tensor:
    """Where the steps of each environment, in time order, are among those of all environments by time."""
    return torch.arange(num_envs * num_steps).view(num_steps, num_envs).T.flatten()
