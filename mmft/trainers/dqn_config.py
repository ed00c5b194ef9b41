"""Settings of deep Q-learning in environments; what they do is in `trainers.dqn`."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmft.data.replay import MIN_POSITIONS
from mmft.errors import ConfigError
from mmft.exploration.schedules import KINDS, Schedule
from mmft.models.adapter_settings import check_names
from mmft.trainers.agent_config import AgentConfig, steps_per_share
from mmft.trainers.config import check_range
from mmft.trainers.importance_settings import STEPS_HELP

EPSILON_GREEDY, BOLTZMANN, THOMPSON = "epsilon_greedy", "boltzmann", "thompson"
EXPLORATIONS = (EPSILON_GREEDY, BOLTZMANN, THOMPSON)
EPSILON_FIELDS = ("exploration_initial_eps", "exploration_final_eps")
TEMPERATURE_FIELDS = ("exploration_initial_temperature", "exploration_final_temperature")


@dataclass
class DQNConfig(AgentConfig):
    """Settings of `DQNTrainer`; names are those of stable-baselines3 where it has them.

    Example:
        >>> from mmft import DQNConfig
        >>> args = DQNConfig(output_dir="runs/example", total_timesteps=3000, train_freq=4)
        >>> args.learning_starts, args.max_steps  # optimizer steps: (3000 - 1000) / 4
        (1000, 500)
        >>> DQNConfig(output_dir="runs/example", exploration="thompson")
        Traceback (most recent call last):
            ...
        mmft.errors.ConfigError: `exploration: thompson` draws networks by dropout, and `dropout` is ...
    """

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

    # A step is a small one here, and a look at the whole model takes as long as three: 0.3 % of a run.
    importance_steps: int = field(default=1000, metadata={"help": STEPS_HELP})

    def __post_init__(self) -> None:
        for name in ("learning_starts", "target_update_interval", "n_steps"):
            check_range(self, name, low=1)
        for name in ("train_freq", "tau", "huber_delta", *TEMPERATURE_FIELDS):
            check_range(self, name, above=0)
        for name in (*EPSILON_FIELDS, "exploration_fraction", "tau"):
            check_range(self, name, low=0, high=1)
        check_names([self.exploration], EXPLORATIONS, "exploration")
        self._check_sizes()
        if self.exploration == THOMPSON and not self.dropout:
            raise ConfigError(
                "`exploration: thompson` draws networks by dropout, and `dropout` is 0. Set it, to 0.1 say."
            )
        super().__post_init__()
        self.schedule()

    def _check_sizes(self) -> None:
        if self.learning_starts <= self.num_envs:
            raise ConfigError(
                f"`learning_starts` is {self.learning_starts}, so that the first update comes before any of "
                f"`num_envs={self.num_envs}` environments has shown where a step leads. Start later."
            )
        least = MIN_POSITIONS * self.num_envs
        if self.buffer_size < max(least, self.learning_starts):
            raise ConfigError(
                f"`buffer_size` is {self.buffer_size}; it must hold the {self.learning_starts} steps of "
                f"`learning_starts`, and {MIN_POSITIONS} of each of `num_envs={self.num_envs}` environments. "
                "Keep more, or start earlier."
            )

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
