"""States as named tensors, for replay buffers, rollouts and their files: embeddings, or what was seen itself.

While the backbone is frozen its embeddings are kept; they are smaller than pictures and are never computed
again. Where it trains they would be out of date at once, and pictures (uint8) and texts are kept.

Shapes: B states, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmft.engine.agent import States
from mmft.engine.observations import Observation, digest_of, digest_of_pictures
from mmft.models.modalities import Modalities

WORDS, PICTURE, NUMBERS = "words", "picture_", "numbers"
"""Names of the tensors of what was seen: the number of the text, pictures, numbers."""


class TextTable:
    """Each distinct text once; states hold its number.

    Attributes:
        known: the texts.
    """

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.known = list(known)
        self._numbers = {text: number for number, text in enumerate(self.known)}

    def number(self, text: str) -> int:
        """The number of a text, a new one if it has none."""
        if text not in self._numbers:
            self._numbers[text] = len(self.known)
            self.known.append(text)
        return self._numbers[text]


@dataclass(frozen=True, slots=True)
class StoredStates:
    """B states by name."""

    tensors: dict[str, Tensor]
    """Each (B, ...)."""
    texts: TextTable
    """Of states that were kept as they were seen."""

    @classmethod
    def of(cls, states: States, texts: TextTable) -> StoredStates:
        """Embeddings as they are; of observations the pictures, the number of the text and the numbers."""
        if isinstance(states, Modalities):
            return cls(states.tensors(), texts)
        tensors = {WORDS: torch.tensor([texts.number(each.text) for each in states])}
        for place in range(len(states[0].images)):
            pictures = np.stack([np.asarray(each.images[place]) for each in states])
            tensors[f"{PICTURE}{place}"] = torch.from_numpy(pictures)
        numbers = [each.numbers for each in states if each.numbers is not None]
        if numbers:
            tensors[NUMBERS] = torch.stack(numbers)
        return cls(tensors, texts)

    @classmethod
    def cat(cls, parts: Sequence[StoredStates]) -> StoredStates:
        """The rows of all parts, one after the other."""
        if WORDS in parts[0].tensors:
            names = parts[0].tensors
            joined = {name: torch.cat([part.tensors[name] for part in parts]) for name in names}
        else:  # sequences of different length
            joined = Modalities.cat([Modalities.from_tensors(part.tensors) for part in parts]).tensors()
        return cls(joined, parts[0].texts)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, rows: Tensor) -> StoredStates:
        """The named rows."""
        return StoredStates(
            {name: tensor[rows.to(tensor.device)] for name, tensor in self.tensors.items()}, self.texts
        )

    def restored(self, device: torch.device | str) -> States:
        """Embeddings on the device, or observations."""
        if WORDS not in self.tensors:
            return Modalities.from_tensors(self.tensors).to(device)
        return [self._observation(row) for row in range(len(self))]

    def _observation(self, row: int) -> Observation:
        seen: dict[str, Any] = {name: tensor[row].cpu() for name, tensor in self.tensors.items()}
        text = self.texts.known[int(seen[WORDS])]
        places = sum(name.startswith(PICTURE) for name in seen)
        images = tuple(Image.fromarray(seen[f"{PICTURE}{place}"].numpy()) for place in range(places))
        return Observation(
            images=images,
            text=text,
            numbers=seen.get(NUMBERS),
            legal=None,
            image_key=digest_of_pictures(images),
            text_key=digest_of([text.encode()]),
        )
