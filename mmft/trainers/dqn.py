"""Deep Q-learning (Mnih et al. 2015) with a vision-language model as the state: off-policy, from a buffer.

    L = E[(G - Q(s, a))^2],   G = R + gamma max_a' Q_target(s', a')

Options: double Q-learning, n-step targets, the Huber loss, a dueling head; exploration by epsilon, by
Boltzmann's distribution, or by one network drawn by dropout per episode (Thompson).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmft.data.replay import ReplayBuffer
from mmft.data.replay_batch import Batch
from mmft.engine.actor_critic import evaluating
from mmft.engine.agent import VLMAgent
from mmft.engine.observations import Observation
from mmft.engine.playing import Played
from mmft.engine.stored_observations import StoredStates, TextTable
from mmft.errors import ConfigError
from mmft.exploration.actions import boltzmann_probs, draw, epsilon_greedy_probs, greedy_probs, uniform_probs
from mmft.exploration.schedules import KINDS, Schedule
from mmft.models.adapter_settings import check_names
from mmft.models.agent_spec import AgentSpec, Q
from mmft.models.modalities import Modalities
from mmft.objectives.q_learning import best_next_values, q_learning_loss
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.agent_config import AgentConfig, steps_per_share
from mmft.trainers.config import check_range
from mmft.trainers.experience import given
from mmft.trainers.schedule import RolloutPlan, Ticket, ticket_loader

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

EPSILON_GREEDY, BOLTZMANN, THOMPSON = "epsilon_greedy", "boltzmann", "thompson"
EXPLORATIONS = (EPSILON_GREEDY, BOLTZMANN, THOMPSON)
EPSILON_FIELDS = ("exploration_initial_eps", "exploration_final_eps")
TARGET_FILE = "target.safetensors"
TEMPERATURE_FIELDS = ("exploration_initial_temperature", "exploration_final_temperature")


@dataclass
class DQNConfig(AgentConfig):
    """Settings of `DQNTrainer`; names are those of stable-baselines3 where it has them."""

    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Steps drawn from the buffer per device in one forward."}
    )
    buffer_size: int = field(
        default=50_000, metadata={"help": "Steps that the buffer of each process keeps."}
    )
    learning_starts: int = field(
        default=1000,
        metadata={
            "help": "Random steps on each process before the first update; scaling and PCA of features are "
            "fitted on them."
        },
    )
    train_freq: float = field(
        default=4.0, metadata={"help": "Steps in environments, on each process, per optimizer step."}
    )
    target_update_interval: int = field(
        default=250, metadata={"help": "Optimizer steps between two updates of the target network."}
    )
    tau: float = field(
        default=1.0, metadata={"help": "How far the target network moves then; 1: all the way."}
    )
    n_steps: int = field(default=1, metadata={"help": "Rewards before the target's value."})
    double_q: bool = field(
        default=True, metadata={"help": "The network chooses a', the target network values it."}
    )
    dueling: bool = field(default=False, metadata={"help": "Q = V + A - mean A."})
    huber_delta: float | None = field(
        default=None, metadata={"help": "Errors beyond it count linearly; unset: squared."}
    )
    exploration: str = field(
        default=EPSILON_GREEDY,
        metadata={"help": "epsilon_greedy, boltzmann, or thompson (one dropout mask an episode)."},
    )
    exploration_schedule: str = field(
        default="linear", metadata={"help": f"From initial to final: {', '.join(KINDS)}."}
    )
    exploration_fraction: float = field(
        default=0.3, metadata={"help": "Share of the run over which exploration falls to its final value."}
    )
    exploration_initial_eps: float = field(default=1.0, metadata={"help": "epsilon at the start."})
    exploration_final_eps: float = field(default=0.05, metadata={"help": "epsilon at the end."})
    exploration_initial_temperature: float = field(
        default=1.0, metadata={"help": "tau of exp(Q / tau) at the start."}
    )
    exploration_final_temperature: float = field(
        default=0.02, metadata={"help": "tau of exp(Q / tau) at the end."}
    )

    def __post_init__(self) -> None:
        for name in ("learning_starts", "target_update_interval", "n_steps"):
            check_range(self, name, low=1)
        for name in ("train_freq", "tau", "huber_delta", *TEMPERATURE_FIELDS):
            check_range(self, name, above=0)
        for name in (*EPSILON_FIELDS, "exploration_fraction", "tau"):
            check_range(self, name, low=0, high=1)
        check_names([self.exploration], EXPLORATIONS, "exploration")
        if self.buffer_size < self.learning_starts:
            raise ConfigError(
                f"`buffer_size` is {self.buffer_size}, less than the {self.learning_starts} steps of "
                "`learning_starts`. Keep more, or start earlier."
            )
        if self.exploration == THOMPSON and not self.dropout:
            raise ConfigError(
                "`exploration: thompson` draws networks by dropout, and `dropout` is 0. Set it, to 0.1 say."
            )
        super().__post_init__()
        self.schedule()

    @property
    def num_optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        share = steps_per_share(self.total_timesteps, self.world_size)
        return int((share - self.learning_starts) / self.train_freq)

    def schedule(self) -> Schedule:
        """epsilon or the temperature over the steps of one process."""
        start, end = TEMPERATURE_FIELDS if self.exploration == BOLTZMANN else EPSILON_FIELDS
        share = steps_per_share(self.total_timesteps, self.world_size)
        return Schedule(
            kind=self.exploration_schedule,
            start=getattr(self, start),
            end=getattr(self, end),
            duration=int(self.exploration_fraction * share),
        )


class DQNTrainer(AgentTrainer):
    """Deep Q-learning; arguments as in `AgentTrainer`.

    Attributes:
        buffer: the steps of this process.
        target: the network whose values are learned from.
    """

    kind: ClassVar[str] = Q
    args: DQNConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.args
        self.buffer = ReplayBuffer(config.buffer_size, config.num_envs, self.player.reader.num_actions)
        self.target: VLMAgent = self.agent.frozen_copy()
        self._schedule = config.schedule()
        self._num_rounds = 0
        self._num_followed = 0

    def agent_spec(self, args: DQNConfig) -> AgentSpec:
        """As in `AgentTrainer`, dueling where wanted."""
        return args.agent_spec(self.kind, self.player.reader, dueling=args.dueling)

    # Acting

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], legal: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) actions of the highest value, and the (B, A) values."""
        q = given(self.agent(self.states(observations)).q, "q").cpu()
        return greedy_probs(q, legal).argmax(1), q

    @torch.no_grad()
    def _explore(self, states: Any, legal: Tensor) -> Tensor:
        """(E,) actions to learn from."""
        uniforms = self.noise.uniforms("act", self._num_rounds, len(legal))
        if not self.agent.transforms.is_fitted or len(self.buffer) < self.args.learning_starts:
            return draw(uniform_probs(legal), uniforms)
        level = self._schedule.at(self.player.num_played)
        masks = self._masks() if self.args.exploration == THOMPSON else None
        with evaluating(self.agent):
            q = given(self.agent(states, masks=masks).q, "q").cpu()
        if self.args.exploration == BOLTZMANN:
            self.metric_log.add("temperature", level)
            return draw(boltzmann_probs(q, level, legal), uniforms)
        if self.args.exploration == THOMPSON:
            return draw(greedy_probs(q, legal), uniforms)
        self.metric_log.add("epsilon", level)
        return draw(epsilon_greedy_probs(q, level, legal), uniforms)

    def _masks(self) -> list[Tensor]:
        """One network for each environment, drawn anew with each of its episodes."""
        head = self.agent.q_head
        if head is None:
            return []
        drawn = [
            head.masks(1, self.noise.generator("thompson", episode, environment))
            for environment, episode in enumerate(self.player.pool.episodes)
        ]
        return [torch.cat(layer) for layer in zip(*drawn, strict=True)]

    @torch.no_grad()
    def _play_round(self) -> Modalities | None:
        """One step of every environment, into the buffer; returns the embeddings, where these are kept."""
        player = self.player
        observations, legal = list(player.observations), player.legal
        states = self.states(observations)
        actions = self._explore(states, legal)
        played = player.play(actions)
        self._num_rounds += 1
        self._store(StoredStates.of(states, self.texts), legal, actions, played)
        return states if isinstance(states, Modalities) else None

    def _store(self, states: StoredStates, legal: Tensor, actions: Tensor, played: Played) -> None:
        """Steps go into the buffer; where an environment failed, its episode ends with the step before."""
        if bool(played.failed.any()):
            cut = played.failed.nonzero().squeeze(1)
            self.buffer.cut(cut, states.take(cut).tensors, legal[cut])
        kept = (~played.failed).nonzero().squeeze(1)
        truncated = played.last & ~played.terminated & ~played.failed
        self.buffer.extend(
            states.take(kept).tensors,
            actions[kept],
            played.rewards[kept],
            terminated=played.terminated[kept],
            last=played.last[kept],
            legal=legal[kept],
            final_states=self._final_states(states, played, truncated, kept),
            streams=kept,
        )

    def _final_states(
        self, states: StoredStates, played: Played, truncated: Tensor, kept: Tensor
    ) -> Mapping[str, Tensor] | None:
        """Where truncated episodes ended; rows of others hold something of the same shape."""
        if not bool(truncated.any()):
            return None
        ended = truncated.nonzero().squeeze(1).tolist()
        finals = [final for n in ended if (final := played.finals[n]) is not None]
        found = StoredStates.of(self.states(finals), self.texts)
        both = StoredStates.cat([states, found])
        rows = torch.arange(len(states))
        rows[truncated] = len(states) + torch.arange(len(ended))
        return both.take(rows[kept]).tensors

    # Rounds and updates

    def get_train_dataloader(self) -> DataLoader[Ticket]:
        """Tickets; `_prepare_inputs` turns them into batches of the buffer."""
        plan = RolloutPlan(
            num_rows=1,
            groups_per_micro_batch=1,
            num_micro_batches=self.args.gradient_accumulation_steps,
            num_mini_batches=max(self.args.max_steps, 1),
            num_epochs=1,
            num_processes=1,
            seed=0,
        )
        return ticket_loader(plan)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """A batch of the buffer, after as many steps in the environments as are due."""
        ticket: Ticket = inputs
        if ticket["micro_batch"] == 0:
            self._follow()
            with self.metric_log.timed("playing"):
                self._play_what_is_due()
        place = self.state.global_step * self.args.gradient_accumulation_steps + ticket["micro_batch"]
        batch = self.buffer.sample(
            self.args.per_device_train_batch_size,
            self.noise.generator("sample", place),
            num_steps=self.args.n_steps,
        )
        return {"batch": batch}

    def _follow(self) -> None:
        """Moves the target network, once at each step that is due."""
        step, interval = self.state.global_step, self.args.target_update_interval
        if step and step % interval == 0 and self._num_followed < step:
            self.target.follow(self.agent, self.args.tau)
            self._num_followed = step

    def _play_what_is_due(self) -> None:
        if not self.player.observations:
            self.begin()
        if not self.agent.transforms.is_fitted or self.player.num_played < self.args.learning_starts:
            self._warm_up()
        due = self.args.learning_starts + self.state.global_step * self.args.train_freq
        while self.player.num_played < due:
            self._play_round()
        self.log_episodes()

    def _warm_up(self) -> None:
        """Random play into the buffer; its features give the statistics."""
        chunks: list[Modalities] = []
        while self.player.num_played < self.args.learning_starts:
            states = self._play_round()
            if states is not None:
                chunks.append(states)
        if not self.agent.transforms.is_fitted:
            self.fit_transforms(chunks or self._encoded_warm_up())

    @torch.no_grad()
    def _encoded_warm_up(self) -> list[Modalities]:
        """Embeddings of what the buffer holds as pictures, by the model as it is before training."""
        count = min(self.args.learning_starts, len(self.buffer) - self.args.num_envs)
        batch = self.buffer.sample(max(count, 1), self.noise.generator("statistics", 0))
        states = StoredStates(batch.states, self.texts).restored(self.args.device)
        with evaluating(self.agent):
            return [self.agent.encoder.encode(states)] if not isinstance(states, Modalities) else [states]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss of one batch of the buffer."""
        batch: Batch = inputs["batch"]
        device, size = self.args.device, self.args.per_device_train_batch_size
        states = StoredStates(batch.states, self.texts).restored(device)
        q = given(model(states).q, "q")
        targets = batch.targets(self._next_values(batch).cpu(), self.args.gamma).to(device)
        actions = batch.actions.to(device)
        share = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        loss = q_learning_loss(
            q, actions, targets, num_samples=float(size * share), huber_delta=self.args.huber_delta
        )
        with torch.no_grad():
            chosen = q.gather(1, actions[:, None]).squeeze(1)
            self.metric_log.add("q", float(chosen.mean()), size)
            self.metric_log.add("td_error", float((targets - chosen).abs().mean()), size)
        return self._checked_loss(loss, [], f"the rewards of {self.environment!r}")

    @torch.no_grad()
    def _next_values(self, batch: Batch) -> Tensor:
        """(N,) max_a' Q(s', a') of the target network, a' chosen by the network itself if double."""
        states = StoredStates(batch.next_states, self.texts).restored(self.args.device)
        legal = batch.next_legal.to(self.args.device)
        chooser = None
        if self.args.double_q:
            with evaluating(self.agent):
                chooser = self.agent(states).q
        return best_next_values(given(self.target(states).q, "q"), legal=legal, chooser=chooser)

    # Checkpoints

    @property
    def _buffer_file(self) -> str:
        return f"replay_{self.args.process_index}.safetensors"

    def progress(self) -> dict[str, Any]:
        """As in `AgentTrainer`, and when the target network followed last."""
        return super().progress() | {"followed": self._num_followed, "rounds": self._num_rounds}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave."""
        super().restore_progress(progress)
        self._num_followed, self._num_rounds = progress["followed"], progress["rounds"]

    def save_state(self, folder: Path) -> None:
        """As in `AgentTrainer`, with the buffer of this process and the target network."""
        if not self.args.save_only_model:
            # A file cannot hold two tensors in the same memory.
            tensors = {name: t.contiguous().clone() for name, t in self.buffer.state_dict().items()}
            save_file(tensors, folder / self._buffer_file, {"texts": json.dumps(self.texts.known)})
            if self.args.should_save:
                save_file(self.target.following_state(), folder / TARGET_FILE)
        super().save_state(folder)

    def load_state(self, folder: Path) -> None:
        """As in `AgentTrainer`, with the buffer and the target network."""
        path = folder / self._buffer_file
        if not path.is_file():
            raise ConfigError(
                f"`resume_from_checkpoint`: {path.name} is missing in {folder}. Resume with as many "
                "processes as before, or from another checkpoint."
            )
        super().load_state(folder)
        with safe_open(path, framework="pt") as file:
            self.texts = TextTable(json.loads(file.metadata()["texts"]))
        shown = StoredStates.of(self.states(self.player.observations), self.texts).tensors
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in shown.items()}
        self.buffer.load_state_dict(load_file(path), row_shapes=shapes)
        self.target.load_following_state(load_file(folder / TARGET_FILE))
