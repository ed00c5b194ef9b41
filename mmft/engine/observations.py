"""From Gymnasium's observations to what a model reads: pictures, text, numbers, and which actions are legal.

The spaces say which key is what, so that most environments need no setting. Left out: videos, sounds, nested
observations, and actions that are not a choice among finitely many.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import PIL.Image
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from mmft.data.images import upright_rgb
from mmft.errors import ConfigError, EnvError

Space = gymnasium.Space[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What is seen of one state, in the form that processors and heads take."""

    images: tuple[Image, ...]
    """RGB pictures of its own; the environment may draw over its buffers."""
    text: str
    """The prompt, without the pictures."""
    numbers: Tensor | None
    """(K,) float32, where the environment has numbers."""
    legal: Tensor | None
    """(A,) True at actions that may be taken; None allows every action."""
    image_key: bytes
    """Digest of the pictures: equal pictures are encoded once."""
    text_key: bytes
    """Digest of the text."""

    @property
    def key(self) -> bytes:
        """Digest of pictures and text; numbers and legal actions do not count."""
        return self.image_key + self.text_key


class ObservationReader:
    """Reads the observations of one environment.

    Attributes:
        environment: the name that errors give.
        num_actions: A.
        num_numbers: K, 0 where there are no numbers.
        image_keys: where the pictures are, in the order in which the model sees them.
        text_keys: where the texts are.
        number_keys: where the numbers are, in the order in which they are laid side by side.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        environment: str,
        image_keys: Sequence[str] | None = None,
        text_keys: Sequence[str] | None = None,
        number_keys: Sequence[str] | None = None,
        instruction: str | None = None,
        mask_key: str = "action_mask",
    ) -> None:
        """Finds the keys.

        Args:
            observation_space: a `Dict`, or the space of a single picture, whose key is then `image`.
            action_space: a `Discrete`.
            environment: the name that errors give.
            image_keys: which keys are pictures; None: all that `is_picture` knows.
            text_keys: which keys are texts; None: all.
            number_keys: which keys are numbers; None: all that `is_numbers` knows.
            instruction: the prompt, with the observation's keys in braces: "{mission} Which way?"; None: the
                texts, one a line.
            mask_key: where the legal actions are, in the observation or in `info`.

        Raises:
            ConfigError: actions or observations of another kind, or a key that is not there.
        """
        if not isinstance(action_space, spaces.Discrete):
            raise ConfigError(
                f"environment {environment!r} has the action space {action_space}, but a policy chooses "
                "among finitely many actions. Wrap it so that its actions are a `gymnasium.spaces.Discrete`."
            )
        self.environment = environment
        self.num_actions = int(action_space.n)
        self._first_action = int(action_space.start)
        self._bare_key, self._spaces = _by_key(observation_space)
        self._mask_key = mask_key
        self.image_keys = self._find("image_keys", image_keys)
        self.text_keys = self._find("text_keys", text_keys)
        self.number_keys = self._find("number_keys", number_keys)
        self.num_numbers = sum(spaces.flatdim(self._spaces[key]) for key in self.number_keys)
        self._instruction = instruction
        self._instruction_keys = self._read_instruction()
        self._check_readable()

    def to_action(self, index: int) -> int:
        """The environment's name for the action with this index, 0 to A - 1."""
        return index + self._first_action

    def read(self, observation: Any, info: Mapping[str, Any]) -> Observation:
        """The observation that `reset` or `step` returned, with the `info` beside it.

        Raises:
            EnvError: a value is missing, or not what its space promises; or no action is legal.
        """
        values = observation if self._bare_key is None else {self._bare_key: observation}
        if not isinstance(values, Mapping):
            raise EnvError(
                f"environment {self.environment!r} observed a {type(values).__name__} where its observation "
                f"space promises a dict of {self._listing()}."
            )
        images = tuple(self._picture(key, self._value(values, key)) for key in self.image_keys)
        text = self._text(values)
        parts = [self._features(key, self._value(values, key)) for key in self.number_keys]
        return Observation(
            images=images,
            text=text,
            numbers=torch.from_numpy(np.concatenate(parts)) if parts else None,
            legal=self._legal(values, info),
            image_key=digest_of_pictures(images),
            text_key=digest_of([text.encode()]),
        )

    def _find(self, setting: str, keys: Sequence[str] | None) -> tuple[str, ...]:
        fits, kind = _KINDS[setting]
        if keys is None:
            return tuple(key for key, space in self._spaces.items() if key != self._mask_key and fits(space))
        for key in keys:
            if key not in self._spaces:
                raise ConfigError(
                    f"environment {self.environment!r}: `{setting}` names {key!r}, which its observations do "
                    f"not have; they have {self._listing()}."
                )
            if not fits(self._spaces[key]):
                raise ConfigError(
                    f"environment {self.environment!r}: `{setting}` names {key!r}, whose space "
                    f"{self._spaces[key]} is not {kind}."
                )
        return tuple(keys)

    def _read_instruction(self) -> tuple[str, ...]:
        """The keys that the instruction names."""
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self._instruction or "")]
        except ValueError as error:
            raise ConfigError(
                f"environment {self.environment!r}: `instruction` is {self._instruction!r}, which is no "
                f"template ({error}). Write keys as {{key}}, and a brace that is meant as one twice."
            ) from error
        keys = tuple(name for name in fields if name is not None)
        for key in keys:
            space = self._spaces.get(key)
            if space is None or not (is_text(space) or is_numbers(space)):
                raise ConfigError(
                    f"environment {self.environment!r}: `instruction` names {{{key}}}, which is no text and "
                    f"no number of its observations; they have {self._listing()}."
                )
        return keys

    def _check_readable(self) -> None:
        if not (self.image_keys or self.text_keys or self._instruction_keys):
            raise ConfigError(
                f"environment {self.environment!r} has no picture and no text in its observations; they have "
                f"{self._listing()}. Wrap it so that one of them is a picture (uint8, (H, W, 3)) or a text, "
                "or write what they hold into `instruction`, with the keys in braces."
            )

    def _listing(self) -> str:
        return ", ".join(f"{key}: {space}" for key, space in self._spaces.items())

    def _value(self, values: Mapping[str, Any], key: str) -> Any:
        if key not in values:
            raise EnvError(
                f"environment {self.environment!r}: the observation lacks {key!r}; its space promises "
                f"{self._spaces[key]}."
            )
        return values[key]

    def _broken(self, key: str, found: str) -> EnvError:
        return EnvError(
            f"environment {self.environment!r}: {key!r} {found}; its space promises {self._spaces[key]}."
        )

    def _array(self, key: str, value: Any) -> NDArray[Any]:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise self._broken(key, f"is no array ({error})") from error
        if array.shape != self._spaces[key].shape:
            raise self._broken(key, f"has the shape {array.shape}")
        return array

    def _picture(self, key: str, value: Any) -> Image:
        pixels, promised = self._array(key, value), self._spaces[key].dtype
        if promised == np.uint8:
            if pixels.dtype != np.uint8:
                raise self._broken(key, f"is of {pixels.dtype}")
        else:
            if pixels.dtype.kind != "f" or not ((pixels >= 0) & (pixels <= 1)).all():
                raise self._broken(key, f"is of {pixels.dtype}, or holds values that are not from 0 to 1")
            pixels = (255 * pixels).round().astype(np.uint8)
        if _has_channels_first(pixels.shape):
            pixels = pixels.transpose(1, 2, 0)
        elif pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        # `fromarray` shares the environment's buffer, which it may draw over; what comes out is a copy.
        return upright_rgb(PIL.Image.fromarray(pixels))

    def _text(self, values: Mapping[str, Any]) -> str:
        if self._instruction is None:
            return "\n".join(self._string(key, self._value(values, key)) for key in self.text_keys)
        filling = {key: self._printable(key, self._value(values, key)) for key in self._instruction_keys}
        try:
            return self._instruction.format_map(filling)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"environment {self.environment!r}: `instruction` is {self._instruction!r}, which cannot be "
                f"filled with {filling} ({error}). Mend what stands behind a colon or an exclamation mark."
            ) from error

    def _string(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._broken(key, f"is of type {type(value).__name__}, not text")
        return value

    def _printable(self, key: str, value: Any) -> Any:
        if not is_numbers(self._spaces[key]):
            return self._string(key, value)
        return self._array(key, value).tolist()  # a format such as {speed:.1f} wants Python's own numbers

    def _features(self, key: str, value: Any) -> NDArray[np.float32]:
        """(K,) one-hot for choices, and numbers as they are."""
        space, array = self._spaces[key], self._array(key, value)
        if not isinstance(space, spaces.Box):
            if not space.contains(array):
                raise self._broken(key, f"is {value}")
            return np.asarray(spaces.flatten(space, array), np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            numbers = array.astype(np.float32) if array.dtype.kind in "buif" else np.full(1, np.nan)
        if not np.isfinite(numbers).all():
            raise self._broken(key, f"is {value}, not finite numbers")
        return numbers.ravel()

    def _legal(self, values: Mapping[str, Any], info: Mapping[str, Any]) -> Tensor | None:
        key = self._mask_key
        if key in self._spaces:
            value = self._value(values, key)
        elif key in info:
            value = info[key]
        else:
            return None
        mask = np.asarray(value)
        if mask.shape != (self.num_actions,) or not np.isin(mask, (0, 1)).all():
            raise EnvError(
                f"environment {self.environment!r}: the legal actions under {key!r} must be "
                f"{self.num_actions} zeros or ones, one for each action; got {value}."
            )
        if not mask.any():
            raise EnvError(
                f"environment {self.environment!r}: {key!r} allows no action. Where nothing can be done the "
                "episode is over: return `terminated=True` on the way there, and a mask of ones."
            )
        return torch.from_numpy(mask.astype(np.bool_))


def is_picture(space: Space) -> bool:
    """True for uint8, or floats from 0 to 1, of shape (H, W), (H, W, 1|3|4) or (3, H, W)."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return False
    from_0_to_1 = space.dtype.kind == "f" and bool((space.low == 0).all() and (space.high == 1).all())
    if space.dtype != np.uint8 and not from_0_to_1:
        return False
    return len(space.shape) == 2 or space.shape[2] in (1, 3, 4) or _has_channels_first(space.shape)


def is_text(space: Space) -> bool:
    """True for `Text`, and for spaces of others' making that hold strings, such as MiniGrid's missions."""
    if type(space).__module__.startswith("gymnasium.spaces"):
        return isinstance(space, spaces.Text)
    return isinstance(space.sample(), str)


def is_numbers(space: Space) -> bool:
    """True for choices (which become one-hot), bits, and numbers along at most one axis."""
    if isinstance(space, spaces.Box):
        return len(space.shape) < 2
    return isinstance(space, spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete)


_KINDS: dict[str, tuple[Callable[[Space], bool], str]] = {
    "image_keys": (
        is_picture,
        "a picture: uint8, or floats from 0 to 1, of shape (H, W), (H, W, 1|3|4) or (3, H, W)",
    ),
    "text_keys": (is_text, "a text"),
    "number_keys": (is_numbers, "a Discrete, MultiDiscrete, MultiBinary, or a Box of at most one axis"),
}


def _by_key(space: Space) -> tuple[str | None, dict[str, Space]]:
    """The key that a single value gets, None for a dict; and the space of each key."""
    if isinstance(space, spaces.Dict):
        return None, dict(space.spaces)
    key = "image" if is_picture(space) else "text" if is_text(space) else "observation"
    return key, {key: space}


def _has_channels_first(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[0] == 3 and min(shape[1:]) > 4


def digest_of_pictures(images: Iterable[Image]) -> bytes:
    return digest_of(b"%dx%d:" % image.size + image.tobytes() for image in images)


def digest_of(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()
