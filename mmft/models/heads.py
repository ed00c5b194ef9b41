"""Heads on the text model's last hidden state: the model's own language head, and the critic.

Shapes: M token positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FORBIDDEN = -1e30
"""Logit of a token that cannot be said: its probability is 0, and 0 * -1e30 is 0 where 0 * -inf is NaN."""

FEW_ROWS = 32
"""Up to so many positions at once the head takes as long as reading its weights."""


class LanguageHead:
    """The language-model head as the policy's distribution: softmax over every token that may be said.

        logits = softcap * tanh(W h / softcap);   logits[forbidden] = -1e30

    Placeholder tokens are left out of the distribution itself, in sampling and in scoring alike, so that
    sampled log-probs are the log-probs of the policy that acted. Holds references only; it is not a module.
    """

    def __init__(self, projection: nn.Module, softcap: float | None, forbidden_ids: frozenset[int]) -> None:
        self.projection = projection
        self.softcap = softcap
        self.forbidden = torch.tensor(sorted(forbidden_ids), dtype=torch.long)

    @property
    def weight(self) -> Tensor | None:
        """(V, D) the matrix, if the head is nothing but one frozen matrix on this device; else None."""
        has_bias = getattr(self.projection, "bias", None) is not None
        if type(self.projection) is not nn.Linear or has_bias or self.softcap is not None:
            return None
        weight: Any = self.projection.weight
        # Sharded weights (DTensor, ZeRO) are only whole inside their module's own forward.
        if type(weight) is not nn.Parameter or hasattr(weight, "ds_id") or weight.requires_grad:
            return None
        frozen: Tensor = weight
        return frozen

    def __call__(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states to (M, V) fp32 logits."""
        logits = self.projection(hidden).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return self.forbid_(logits)

    @torch.no_grad()
    def for_decoding(self, hidden: Tensor) -> Tensor:
        """The same logits, for the few rows of a decoding step."""
        weight = self.weight
        if weight is None or hidden.device.type != "cpu" or len(hidden) > FEW_ROWS:
            return self(hidden)
        # Bound by reading W: computed as W h', whose rows the CPU's matrix product splits over its threads.
        return self.forbid_((weight @ hidden.to(weight.dtype).T).T.contiguous().float())

    def forbid_(self, logits: Tensor) -> Tensor:
        """Takes the placeholder tokens out of the distribution, in place."""
        if self.forbidden.numel() == 0:
            return logits
        return logits.index_fill_(-1, self.forbidden.to(logits.device), FORBIDDEN)


class ValueHead(nn.Linear):
    """The critic V(s) = w . h + b on the last hidden state: fp32, zero at the start, no dropout.

    Zero initialisation makes the first advantages those of the plain return, instead of noise."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) to (...) fp32 values."""
        with torch.autocast(hidden.device.type, enabled=False):  # mixed precision must not round the critic
            return super().forward(hidden.to(self.weight.dtype)).squeeze(-1)
