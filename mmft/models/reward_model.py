"""The head of a learned reward model, what it states, and the description that is saved beside its weights.

Shapes: N completions, D width of the features, T dropout samples.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mmft.errors import ConfigError

RewardLoss = Literal["bradley_terry", "mse", "heteroscedastic"]
LOSS_TYPES: tuple[str, ...] = get_args(RewardLoss)
SPEC_FILE = "reward_model.json"
NUM_LIKELIHOODS = 2
"""The mean and the least log-prob of a completion's tokens, behind the hidden state."""
LOG_VARIANCE_BOUND = 15.0
"""Of a standardised log-variance, approached smoothly: data without noise would drive it to -infinity."""


def check_loss_type(loss_type: str) -> None:
    """Raises ConfigError for anything but one of `LOSS_TYPES`."""
    if loss_type not in LOSS_TYPES:
        raise ConfigError(f"`loss_type` must be one of {', '.join(LOSS_TYPES)}; got {loss_type!r}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelSpec:
    """What is needed to build a reward model before its weights are loaded."""

    loss_type: str
    """What it was trained with; `heteroscedastic` has a variance output."""
    hidden_size: int
    """D, the width of the backbone's hidden states."""
    head_width: int
    """Units of the head's hidden layer."""
    dropout: float
    """Of the head, in training and in Monte Carlo samples."""
    max_completion_length: int
    """Tokens after which a completion is cut, the end token included."""
    backbone: Literal["frozen", "adapter", "full"]
    """What of the backbone is saved beside the head: nothing, an adapter, all of it."""
    base: str | None = None
    """Name of the pretrained model that the head, or the adapter, sits on."""
    dtype: str = "float32"
    """Of the backbone's weights."""
    reads_likelihood: bool = False
    """Whether the head also reads how likely the backbone finds the completion."""

    def __post_init__(self) -> None:
        check_loss_type(self.loss_type)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`dropout` must be at least 0 and below 1; got {self.dropout}.")
        for name in ("hidden_size", "head_width", "max_completion_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be >= 1; got {getattr(self, name)}.")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `reward_model.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (Path(folder) / SPEC_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> RewardModelSpec:
        """Reads `reward_model.json`.

        Raises:
            ConfigError: the folder is no reward model, or one of another version.
        """
        path = Path(folder) / SPEC_FILE
        if not path.is_file():
            raise ConfigError(
                f"`path` {str(folder)!r} holds no {SPEC_FILE}; give the output folder of a reward-model run."
            )
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. Save the reward model again.") from error


@dataclass(frozen=True, slots=True)
class RewardEstimate:
    """Rewards with their uncertainty, all (N,) and in the unit of the ratings (squared for variances)."""

    mean: Tensor
    """y_bar, the mean over the dropout samples; without samples, the prediction without dropout."""
    epistemic: Tensor
    """1/T sum_t (f_t(s) - y_bar)^2: what the model does not know. 0 without samples."""
    aleatoric: Tensor
    """1/T sum_t exp(log sigma_t^2): the noise of the ratings, as the model states it. 0 if it states none."""

    @property
    def total(self) -> Tensor:
        """Epistemic + aleatoric variance (Kendall & Gal 2017, arXiv:1703.04977, eq. 9)."""
        return self.epistemic + self.aleatoric

    def variance(self, kind: str) -> Tensor:
        """`total`, `epistemic` or `aleatoric`."""
        variance: Tensor = getattr(self, kind)
        return variance


class RewardHead(nn.Module):
    """A perceptron of one hidden layer on the last hidden state; fp32, zero at the start.

        h = GELU(W_1 drop(s) + b_1);   [y, log sigma^2] = W_2 drop(h) + b_2

    What it learns is standardised; `shift` and `scale`, the mean and the standard deviation of the ratings it
    was trained on, give it their unit:

        reward = shift + scale * y,   log-variance = log sigma^2 + 2 log scale
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, hidden_size: int, *, width: int, dropout: float, states_variance: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.states_variance = states_variance
        self.hidden = nn.Linear(hidden_size, width, dtype=torch.float32)
        self.output = nn.Linear(width, 1 + int(states_variance), dtype=torch.float32)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("shift", torch.zeros((), dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    def set_unit(self, ratings: Sequence[float]) -> None:
        """Takes mean and standard deviation of the training ratings as the unit of predictions.

        Raises:
            ConfigError: the ratings are all the same.
        """
        numbers = torch.tensor(ratings, dtype=torch.float64)
        # Their deviation from a rounded mean need not be 0 where they are all the same.
        if bool((numbers == numbers[0]).all()):
            raise ConfigError(f"every `rating` is {numbers[0].item()}; there is nothing to learn from them.")
        scale = numbers.std(correction=0)
        self.shift.copy_(numbers.mean())
        self.scale.copy_(scale)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, D) features to (N,) rewards and (N,) log-variances; dropout acts in training mode."""
        drop = nn.functional.dropout
        return self._run(
            features,
            lambda inputs: drop(inputs, self.dropout, self.training),
            lambda inputs: drop(inputs, self.dropout, self.training),
        )

    def sample(
        self, features: Tensor, num_samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """T networks drawn by dropout, each applied to every completion.

        One mask per sample and unit, the same for all N: what a completion gets depends on the generator
        alone, not on its neighbours. The masks are drawn where the generator lives (the CPU), so that every
        device draws the same.

        Args:
            features: (N, D), computed once for all samples.
            num_samples: T.
            generator: source of the masks.

        Returns:
            (T, N) rewards, (T, N) log-variances or None.
        """
        rewards, log_variances = [], []
        for _ in range(num_samples):
            kept_inputs = self._mask(self.hidden.in_features, generator, features.device)
            kept_units = self._mask(self.hidden.out_features, generator, features.device)
            reward, log_variance = self._run(
                features, lambda x, kept=kept_inputs: x * kept, lambda x, kept=kept_units: x * kept
            )
            rewards.append(reward)
            log_variances.append(log_variance)
        stated = [each for each in log_variances if each is not None]
        return torch.stack(rewards), torch.stack(stated) if stated else None

    def _mask(self, width: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """(width,) 0 with probability `dropout`, else 1 / (1 - dropout)."""
        kept = torch.rand(width, generator=generator, device=generator.device) >= self.dropout
        return (kept / (1 - self.dropout)).to(device)

    def _run(self, features: Tensor, drop_inputs: Any, drop_units: Any) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(features.device.type, enabled=False):  # mixed precision must not round rewards
            inputs = drop_inputs(features.to(self.hidden.weight.dtype))
            units = drop_units(nn.functional.gelu(self.hidden(inputs)))
            outputs = self.output(units)
            reward = self.shift + self.scale * outputs[:, 0]
            if not self.states_variance:
                return reward, None
            bounded = LOG_VARIANCE_BOUND * torch.tanh(outputs[:, 1] / LOG_VARIANCE_BOUND)
            return reward, bounded + 2 * torch.log(self.scale)
