"""Fusions in which tokens attend to tokens, and the attention they share.

One layer of projections and no position encodings: where a token stands has been said by its encoder.

Shapes: B rows, Q queries, K keys, T tokens of one modality, D size of the state.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmft._checks import check_shapes
from mmft._masking import zero_outside
from mmft.errors import ConfigError
from mmft.models.fusion_base import Fusion, float32_linear, projection, vectors
from mmft.models.modalities import Modalities, mean_over_tokens


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor, *, num_heads: int = 1
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), its heads side by side.

        A_h = softmax(Q_h K_h' / sqrt(d)) V_h,   d = D / num_heads,   softmax over the keys of the mask

    A row without keys gets 0. Keys and values outside the mask may hold anything; queries must be finite.
    Shapes: (B, Q, D), (B, K, D), (B, K, D), (B, K) -> (B, Q, D).
    """
    check_shapes(
        queries=(queries, "BQD"), keys=(keys, "BKD"), values=(values, "BKD"), key_mask=(key_mask, "BK")
    )
    keys, values = (zero_outside(x, key_mask.unsqueeze(2)) for x in (keys, values))
    # The softmax over no key is 0/0, and kernels differ in what they make of it: a row without keys sees all
    # positions, whose values are 0.
    visible = key_mask | ~key_mask.any(dim=1, keepdim=True)
    queries, keys, values = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    attended = nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible[:, None, None, :]
    )
    return attended.transpose(1, 2).flatten(2)


class CrossModalAttention(Fusion):
    """Tokens of one modality, the query m, look at those of another, the key n.

        H = W_o mean_t Attention(W_q E_m, W_k E_n, W_v E_n) + W_r mean_t E_m

    A row that lacks the key has the second term alone; one that lacks the query has nothing to ask, H = 0.

    Attributes:
        query: m.
        key: n.
        num_heads: of the attention.
        from_query: W_r, or None without `residual`, which leaves the second term out.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        size: int,
        *,
        query: str = "text",
        key: str = "image",
        num_heads: int = 1,
        residual: bool = True,
        normalize: bool = False,
    ) -> None:
        for option, name in (("query", query), ("key", key)):
            if name not in widths:
                raise ConfigError(
                    f"`{option}` is {name!r}, and the modalities are {', '.join(widths)}; choose one of them."
                )
        super().__init__({query: widths[query], key: widths[key]}, size, normalize=normalize)
        self.query = query
        self.key = key
        self.num_heads = _checked_heads(size, num_heads)
        self.to_query = float32_linear(widths[query], size)
        self.to_key = float32_linear(widths[key], size)
        self.to_value = float32_linear(widths[key], size)
        self.output = float32_linear(size, size)
        self.from_query = float32_linear(widths[query], size) if residual else None

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        asking, asked = states.embeddings[self.query], states.embeddings[self.key]
        attended = attention(
            self.to_query(asking),
            self.to_key(asked),
            self.to_value(asked),
            states.masks[self.key],
            num_heads=self.num_heads,
        )
        state: Tensor = self.output(mean_over_tokens(attended, states.masks[self.query]))
        if self.from_query is not None:
            state = state + self.from_query(vectors(states)[self.query])
        return state


class AllModalityAttention(Fusion):
    """Tokens of each modality look at all tokens of all modalities.

        H = sum_m W_m mean_t Attention(W_q^m E_m, K, V),   K = [W_k^1 E_1; ...; W_k^M E_M],   V likewise

    A missing modality has neither queries nor keys.

    Attributes:
        num_heads: of the attention.
    """

    def __init__(
        self, widths: Mapping[str, int], size: int, *, num_heads: int = 1, normalize: bool = False
    ) -> None:
        super().__init__(widths, size, normalize=normalize)
        self.num_heads = _checked_heads(size, num_heads)
        self.to_query = _maps(widths, size)
        self.to_key = _maps(widths, size)
        self.to_value = _maps(widths, size)
        self.output = _maps(dict.fromkeys(widths, size), size)

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        queries, keys, values = (
            torch.cat([maps[name](x) for name, x in states.embeddings.items()], dim=1)
            for maps in (self.to_query, self.to_key, self.to_value)
        )
        key_mask = torch.cat(list(states.masks.values()), dim=1)
        attended = attention(queries, keys, values, key_mask, num_heads=self.num_heads)
        parts = attended.split([mask.shape[1] for mask in states.masks.values()], dim=1)
        terms = [
            self.output[name](mean_over_tokens(part, mask))
            for (name, mask), part in zip(states.masks.items(), parts, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


class SharedAttention(Fusion):
    """One self-attention over the tokens of all modalities, with the same projections for all.

        X = [P_1 E_1 + e_1; ...; P_M E_M + e_M],   H = W_o mean_t Attention(W_q X, W_k X, W_v X)

    P_m is the identity where E_m is as wide as the state, else a linear map. e_m, learned and 0 at the start,
    tells tokens of one modality from those of another.

    Attributes:
        num_heads: of the attention.
        origins: e_m by modality.
    """

    def __init__(
        self, widths: Mapping[str, int], size: int, *, num_heads: int = 1, normalize: bool = False
    ) -> None:
        super().__init__(widths, size, normalize=normalize)
        self.num_heads = _checked_heads(size, num_heads)
        self.projections = nn.ModuleDict({name: projection(width, size) for name, width in widths.items()})
        self.origins = nn.ParameterDict({name: torch.zeros(size, dtype=torch.float32) for name in widths})
        self.to_query = float32_linear(size, size)
        self.to_key = float32_linear(size, size)
        self.to_value = float32_linear(size, size)
        self.output = float32_linear(size, size)

    def fuse(self, states: Modalities) -> Tensor:
        """See the class."""
        tokens = torch.cat(
            [self.projections[name](x) + self.origins[name] for name, x in states.embeddings.items()], dim=1
        )
        mask = torch.cat(list(states.masks.values()), dim=1)
        attended = attention(
            self.to_query(tokens), self.to_key(tokens), self.to_value(tokens), mask, num_heads=self.num_heads
        )
        state: Tensor = self.output(mean_over_tokens(attended, mask))
        return state


def _maps(widths: Mapping[str, int], size: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: float32_linear(width, size) for name, width in widths.items()})


def _checked_heads(size: int, num_heads: int) -> int:
    if num_heads < 1 or size % num_heads:
        raise ConfigError(f"`num_heads` must be >= 1 and divide `size`, {size}; got {num_heads}.")
    return num_heads
