"""What `mmft explain` is asked, and what it found."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from mmft.errors import ConfigError
from mmft.report.explanations import Explained, Figure
from mmft.trainers.importance_settings import METHODS

COMPLETION, TOKEN, VALUE, Q, POLICY = "completion", "token", "value", "q", "policy"
ANSWERS, DECISIONS = (COMPLETION, TOKEN, VALUE), (Q, POLICY, VALUE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be explained.

    Attributes:
        rows: how many held-out rows, or episodes of an agent.
        image: a picture in their place.
        prompt: what is asked about it; the run's own question if None.
        answer: what is said about it; the policy's own answer if None.
        of: of a policy `completion`, `token` or `value`, of an agent `q`, `policy` or `value`.
        token: which token of the answer: a word, or its place from 0.
        base: explain the pretrained model instead.
        method: of the attribution.
        map_by: column by which a map of states is coloured; None draws none.
        map_rows: at most so many states on it.
    """

    rows: int = 5
    image: Image | None = None
    prompt: str | None = None
    answer: str | None = None
    of: str | None = None
    token: str | None = None
    base: bool = False
    method: str = METHODS[0]
    map_by: str | None = None
    map_rows: int = 200

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("map_rows", 3)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise ConfigError(f"`--{option}` must be >= {least}; got {getattr(self, name)}.")
        if self.image is None and (self.prompt is not None or self.answer is not None):
            option = "answer" if self.prompt is None else "prompt"
            raise ConfigError(f"`--{option}` goes with a picture of your own; add `--image FILE`.")
        if self.token is not None and self.of not in (None, TOKEN, VALUE):
            raise ConfigError(f"`--token` goes with `--of token` or `--of value`; `--of` is {self.of}.")
        if self.of == TOKEN and self.token is None:
            raise ConfigError("`--of token` needs `--token`: a word of the answer, or its place from 0.")

    def target(self, known: Sequence[str], whose: str) -> str:
        """What is explained, out of what can be.

        Raises:
            ConfigError: it is something else.
        """
        wanted = TOKEN if self.of is None and self.token is not None else self.of or known[0]
        if wanted not in known:
            raise ConfigError(f"`--of {wanted}` does not go with {whose}; choose {', '.join(known)}.")
        return wanted


@dataclass(frozen=True, slots=True)
class Explanations:
    """What `explain_run` found and wrote.

    Attributes:
        folder: where explain.json and the pictures are.
        explained: each answer or decision with what it hangs on.
        figures: other pictures in the folder.
        notes: what could not be done.
    """

    folder: Path
    explained: Sequence[Explained]
    figures: Sequence[Figure] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> list[Path]:
        """The heat maps, one for each explanation."""
        return [self.folder / f"{number}_heat.png" for number in range(len(self.explained))]


def nearest(wrong: str, offered: Sequence[str]) -> str:
    """What may have been meant, or what there is."""
    near = difflib.get_close_matches(wrong, offered, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(offered) or 'none'}."
