"""Deep Q-learning (Mnih et al. 2015) with a vision-language model as the state: off-policy, from a buffer.

    L = E[(G - Q(s, a))^2],   G = R + gamma max_a' Q_target(s', a')

Options: double Q-learning, n-step targets, the Huber loss, a dueling head; exploration by epsilon, by
Boltzmann's distribution, or by one network drawn by dropout per episode (Thompson).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from mmft.data.replay import ReplayBuffer
from mmft.data.replay_batch import Batch
from mmft.engine.actor_critic import evaluating
from mmft.engine.agent import VLMAgent
from mmft.engine.observations import Observation
from mmft.engine.playing import Played, legal_actions
from mmft.engine.stored_observations import StoredStates, TextTable
from mmft.errors import ConfigError
from mmft.exploration.actions import boltzmann_probs, draw, epsilon_greedy_probs, greedy_probs, uniform_probs
from mmft.models.agent_spec import AgentSpec, Q
from mmft.models.modalities import Modalities
from mmft.objectives.q_learning import best_next_values, q_learning_loss
from mmft.trainers.agent import AgentTrainer
from mmft.trainers.dqn_config import BOLTZMANN, THOMPSON, DQNConfig
from mmft.trainers.experience import given
from mmft.trainers.schedule import RolloutPlan, Ticket, ticket_loader

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["DQNConfig", "DQNTrainer"]

TARGET_FILE = "target.safetensors"


class DQNTrainer(AgentTrainer):
    """Deep Q-learning; arguments as in `AgentTrainer`.

    Attributes:
        buffer: the steps of this process.
        target: the network whose values are learned from.

    Example:
        >>> from mmft import DQNConfig, DQNTrainer
        >>> settings = {"total_timesteps": 40, "learning_starts": 20, "num_envs": 4, "buffer_size": 64}
        >>> args = DQNConfig(output_dir="runs/example", eval_episodes=8, **settings)
        >>> grid = {"size": 3, "wrong_reward": 0.0, "jitter": False}
        >>> trainer = DQNTrainer("mmft/tiny-captioner", "mmft/FindObject-v0", args, env_kwargs=grid)
        >>> _ = trainer.train()
        >>> 0 <= trainer.evaluate()["eval_success"] <= 1
        True
        >>> sorted(trainer.evaluate(blank="text"))  # what is the mission good for?
        ['eval_episode_length', 'eval_optimal_share', 'eval_return', 'eval_success']
    """

    kind: ClassVar[str] = Q
    args: DQNConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_dropout()
        self.target: VLMAgent = self.agent.frozen_copy()
        self._schedule = self.args.schedule()
        self._start_run()

    def _check_dropout(self) -> None:
        if self.args.exploration == THOMPSON and not self.agent.spec.dropout:
            raise ConfigError(
                "`exploration: thompson` draws networks by dropout, and `model` is an agent that has none. "
                "Build it with `dropout`, or explore otherwise."
            )

    def _start_run(self) -> None:
        config = self.args
        self.buffer = ReplayBuffer(config.buffer_size, config.num_envs, self.player.reader.num_actions)
        self.target.follow(self.agent)
        self.player.num_played = 0
        self._num_rounds = 0

    def agent_spec(self, args: DQNConfig) -> AgentSpec:
        """As in `AgentTrainer`, dueling where wanted."""
        return args.agent_spec(self.kind, self.player.reader, dueling=args.dueling)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in `transformers.Trainer`; a second call fills an empty buffer, and explores from the start."""
        self._start_run()
        return super().train(*args, **kwargs)

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
        if not self.agent.transforms.is_fitted or self.player.num_played < self.args.learning_starts:
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
        final_states, final_legal = self._finals(states, legal, played)
        self.buffer.extend(
            states.take(kept).tensors,
            actions[kept],
            played.rewards[kept],
            terminated=played.terminated[kept],
            last=played.last[kept],
            legal=legal[kept],
            final_states=final_states.take(kept).tensors,
            final_legal=final_legal[kept],
            streams=kept,
        )

    def _finals(self, states: StoredStates, legal: Tensor, played: Played) -> tuple[StoredStates, Tensor]:
        """Where truncated episodes ended, and what could be done there; the rows of others are not read."""
        truncated = played.last & ~played.terminated & ~played.failed
        finals = [each for n, each in enumerate(played.finals) if each is not None and truncated[n]]
        if not finals:
            return states, legal
        found = StoredStates.of(self.states(finals), self.texts)
        rows, legal = torch.arange(len(states)), legal.clone()
        rows[truncated] = len(states) + torch.arange(len(finals))
        legal[truncated] = legal_actions(finals, legal.shape[1])
        return StoredStates.cat([states, found]).take(rows), legal

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
        """Moves the target network at each step that is due."""
        step = self.state.global_step
        if step and step % self.args.target_update_interval == 0:
            self.target.follow(self.agent, self.args.tau)

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
    def _origin(self) -> dict[str, Any]:
        return super()._origin | {"buffer_size": self.args.buffer_size}

    @property
    def _buffer_file(self) -> str:
        return f"replay_{self.args.process_index}.safetensors"

    def save_state(self, folder: Path) -> None:
        """As in `AgentTrainer`, with the buffer of this process and the target network."""
        if not self.args.save_only_model:
            # A file cannot hold two tensors in the same memory.
            tensors = {name: t.contiguous().clone() for name, t in self.buffer.state_dict().items()}
            metadata = {"texts": json.dumps(self.texts.known), "rounds": str(self._num_rounds)}
            save_file(tensors, folder / self._buffer_file, metadata)
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
            metadata = file.metadata()
        self.texts, self._num_rounds = TextTable(json.loads(metadata["texts"])), int(metadata["rounds"])
        shown = StoredStates.of(self.states(self.player.observations), self.texts).tensors
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in shown.items()}
        self.buffer.load_state_dict(load_file(path), row_shapes=shapes)
        self.target.load_following_state(load_file(folder / TARGET_FILE))
