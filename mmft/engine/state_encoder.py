"""From observations to modality embeddings; what frozen weights made of an observation is kept.

Nothing of the heads or of fusion is here. Text is embedded from a prompt of its own, rendered without the
pictures: "text" is what the words say, "fused" what they say about the pictures.

Shapes: B observations, T tokens of one modality, D width, K numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from mmft.engine.actor_critic import evaluating
from mmft.engine.feature_cache import FeatureCache
from mmft.engine.observations import Observation
from mmft.engine.prompt_encoder import process_rows, process_texts
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone
from mmft.models.embedding import supported_modalities
from mmft.models.modalities import Modalities
from mmft.models.prompts import PromptInputs
from mmft.types import PromptRow

_KEYS: dict[str, Callable[[Observation], bytes]] = {
    "image": lambda observation: observation.image_key,
    "text": lambda observation: observation.text_key,
    "fused": lambda observation: observation.key,
}
"""What the embedding of each modality depends on."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    """(T, D) the embedding of one modality of one observation, without padding; T = 0 where it is missing."""

    tensor: Tensor

    @property
    def num_bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()


class StateEncoder:
    """Embeds observations by a vision-language model, each distinct one once while nothing trains.

    While weights of the model train every observation is encoded anew, in the graph where gradients are on,
    and in the mode (dropout) that the model is in.

    Attributes:
        backbone: the model.
        modalities: what is asked of the model.
        pooled: whether sequences become their mean, T = 1, before they are kept.
        num_numbers: K.
        batch_size: how many observations go through the model together.
        cache_bytes: bound of the cache.
        cache: what frozen weights made of earlier observations.
        passes: which modalities come of the same forward.
        num_asked: observations that were asked for.
        num_encoded: observations that went through the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        modalities: Sequence[str],
        *,
        pooled: bool,
        cache_bytes: int,
        batch_size: int = 64,
        num_numbers: int = 0,
    ) -> None:
        """Takes the model.

        Args:
            backbone: the model.
            modalities: some of `image`, `text` and `fused`.
            pooled: whether sequences become their mean.
            cache_bytes: bound of the cache.
            batch_size: observations that go through the model together.
            num_numbers: K; 0 leaves the observations' numbers out.

        Raises:
            ConfigError: a modality that observations or the model do not have, or none at all.
        """
        known = [name for name in supported_modalities(backbone) if name in _KEYS]
        for name in modalities:
            if name not in known:
                raise ConfigError(
                    f"`modalities` has {name!r}, which this model does not make of observations; it makes "
                    f"{', '.join(known)}. Numbers are added by themselves where the environment has them."
                )
        if not modalities and not num_numbers:
            raise ConfigError(f"`modalities` is empty; give some of {', '.join(known)}.")
        self.backbone = backbone
        self.modalities = tuple(modalities)
        self.pooled = pooled
        self.batch_size = batch_size
        self.num_numbers = num_numbers
        self.num_asked = 0
        self.num_encoded = 0
        self.cache_bytes = cache_bytes
        self.cache: FeatureCache[_Tokens] = FeatureCache(cache_bytes)
        with_pictures = tuple(name for name in self.modalities if name != "text")
        words_alone = tuple(name for name in self.modalities if name == "text")
        self.passes = [names for names in (with_pictures, words_alone) if names]

    @property
    def frozen(self) -> bool:
        """True while no weight of the model trains, so that an observation's embeddings never change."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    @property
    def widths(self) -> dict[str, int]:
        """D of each modality that `encode` returns."""
        widths = dict.fromkeys(self.modalities, self.backbone.hidden_size)
        return widths | {"numbers": self.num_numbers} if self.num_numbers else widths

    @contextlib.contextmanager
    def forgotten(self) -> Iterator[None]:
        """Without the cache, so that what is copied meanwhile does not copy it."""
        cache, self.cache = self.cache, FeatureCache(self.cache_bytes)
        try:
            yield
        finally:
            self.cache = cache

    def encode(self, observations: Sequence[Observation]) -> Modalities:
        """The embeddings of B observations, in their order, on the model's device.

        Raises:
            DataError: the processor refuses an observation.
            ValueError: there are no observations, or one has other than `num_numbers` numbers.
        """
        if not observations:
            raise ValueError("`observations` is empty; give at least one.")
        self.num_asked += len(observations)
        parts = self._recalled(observations) if self.frozen else self._encoded(observations)
        return self._side_by_side(parts, observations)

    def encode_anew(self, observations: Sequence[Observation]) -> tuple[Modalities, list[PromptInputs]]:
        """Embeddings past the cache, in the graph where gradients are on, and what went through the model.

        Each of the inputs takes one forward, of all observations together; nothing is kept or counted."""
        inputs = [self._inputs(observations, names) for names in self.passes]
        each = zip(inputs, self.passes, strict=True)
        parts = [self._pooled(self.backbone.embed(some, names)) for some, names in each]
        return self._side_by_side(parts, observations), inputs

    def _side_by_side(self, parts: list[Modalities], observations: Sequence[Observation]) -> Modalities:
        """All modalities of the observations, their numbers among them."""
        if self.num_numbers:
            parts = [*parts, self._numbers(observations)]
        embeddings = {name: part.embeddings[name] for part in parts for name in part.names}
        masks = {name: part.masks[name] for part in parts for name in part.names}
        return Modalities(embeddings, masks).only(tuple(self.widths))

    def _encoded(self, observations: Sequence[Observation]) -> list[Modalities]:
        """Every observation through the model as it is now."""
        self.cache = FeatureCache(self.cache_bytes)  # what it holds was made by other weights
        self.num_encoded += len(observations)
        return [
            Modalities.cat([self._embed(batch, names) for batch in self._batches(observations)])
            for names in self.passes
        ]

    def _recalled(self, observations: Sequence[Observation]) -> list[Modalities]:
        """Only what the cache does not hold goes through the model, once."""
        found: dict[Hashable, _Tokens] = {}
        new: set[int] = set()
        for names in self.passes:
            first = self._first_missing(observations, names, found)
            new |= set(first)
            for batch in self._batches([observations[index] for index in first]):
                self._keep(batch, names, found)
        self.num_encoded += len(new)
        return [
            _joined(name, [found[name, _KEYS[name](observation)] for observation in observations])
            for name in self.modalities
        ]

    def _first_missing(
        self, observations: Sequence[Observation], names: Sequence[str], found: dict[Hashable, _Tokens]
    ) -> list[int]:
        """The observations that must be encoded for these modalities; what is cached goes to `found`."""
        missing: dict[Hashable, int] = {}
        for index, observation in enumerate(observations):
            for name in names:
                key = (name, _KEYS[name](observation))
                if key in found or key in missing:
                    continue
                kept = self.cache.get(key)
                if kept is None:
                    missing[key] = index
                else:
                    found[key] = kept
        return sorted(set(missing.values()))

    def _keep(
        self, observations: Sequence[Observation], names: Sequence[str], found: dict[Hashable, _Tokens]
    ) -> None:
        with torch.no_grad(), evaluating(self.backbone.model):
            states = self._embed(observations, names)
        for name in names:
            lengths = states.masks[name].sum(1).tolist()
            for observation, tokens, length in zip(
                observations, states.embeddings[name], lengths, strict=True
            ):
                key = (name, _KEYS[name](observation))
                found[key] = _Tokens(tokens[:length].clone())  # a view would keep the whole batch
                self.cache.put(key, found[key])

    def _embed(self, observations: Sequence[Observation], names: Sequence[str]) -> Modalities:
        """One forward: `text` alone, or others."""
        return self._pooled(self.backbone.embed(self._inputs(observations, names), names))

    def _inputs(self, observations: Sequence[Observation], names: Sequence[str]) -> PromptInputs:
        """What the processor makes of them."""
        processor = self.backbone.processor
        if "text" in names:
            return process_texts(processor, [_prompt_row(o.text, ()) for o in observations])
        return process_rows(processor, [_prompt_row(o.text, o.images) for o in observations])

    def _pooled(self, states: Modalities) -> Modalities:
        return states.pooled() if self.pooled else states

    def _batches(self, observations: Sequence[Observation]) -> Iterator[Sequence[Observation]]:
        for start in range(0, len(observations), self.batch_size):
            yield observations[start : start + self.batch_size]

    def _numbers(self, observations: Sequence[Observation]) -> Modalities:
        """(B, 1, K), missing where an observation has none."""
        rows = []
        for observation in observations:
            numbers = torch.zeros(self.num_numbers) if observation.numbers is None else observation.numbers
            if numbers.shape != (self.num_numbers,):
                raise ValueError(
                    f"`num_numbers` is {self.num_numbers}, but an observation has numbers of shape "
                    f"{tuple(numbers.shape)}. Give the reader's own `num_numbers`."
                )
            rows.append(numbers)
        mask = torch.tensor([[observation.numbers is not None] for observation in observations])
        states = Modalities({"numbers": torch.stack(rows)[:, None]}, {"numbers": mask})
        return states.to(self.backbone.device)


def _prompt_row(text: str, images: Sequence[Image]) -> PromptRow:
    """The pictures, then the text, as a user's message; errors name the row by its text."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return PromptRow(repr(text), text, [{"role": "user", "content": content}], list(images))


def _joined(name: str, rows: Sequence[_Tokens]) -> Modalities:
    """One modality of all observations, padded at the end to the longest, and to one token at least."""
    device = rows[0].tensor.device
    lengths = torch.tensor([row.tensor.shape[0] for row in rows], device=device)
    tokens = torch.nn.utils.rnn.pad_sequence([row.tensor for row in rows], batch_first=True)
    if tokens.shape[1] == 0:
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, 1))
    mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
    return Modalities({name: tokens}, {name: mask})
