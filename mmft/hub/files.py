"""Which files of a run folder are shared, by kind of run, and why the others are not.

The list names what goes; whatever else lies in the folder stays, so that a new file is private until somebody
decides otherwise.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from mmft.errors import ConfigError, HubError
from mmft.models.adapter_settings import ADAPTER_FILE, PRETRAINED_FILE

Kind = Literal["policy", "agent", "reward_model", "sft", "model"]
CARD_FILE, CONFIG_FILE = "README.md", "config.yaml"
AGENT_FILE, REWARD_MODEL_FILE = "agent.json", "reward_model.json"
MODEL_CONFIG_FILE, REWARDS_FILE = "config.json", "rewards.json"
BASE_FOLDER, MERGED_FOLDER = "base", "merged"

WEIGHTS = (
    ADAPTER_FILE, "adapter_model.safetensors", PRETRAINED_FILE, MODEL_CONFIG_FILE, "generation_config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
PROCESSOR = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
RECORD = (CARD_FILE, CONFIG_FILE, "summary.json", "metrics.jsonl", "curves.png")
OF_KIND: dict[Kind, tuple[str, ...]] = {
    "policy": ("heads.safetensors", REWARDS_FILE),
    "agent": (AGENT_FILE, "heads.safetensors"),
    "reward_model": (REWARD_MODEL_FILE, "reward_head.safetensors"),
    "sft": (),
    "model": (),
}
SAMPLES = (
    "report.html", "samples.jsonl", "samples/*.jpg", "card/*.jpg", "overview.png", "explain/*.png",
    "explain/explain.json", "episodes.jsonl", "episode.png", "episode.gif",
)  # fmt: skip
"""What shows rows of the data or episodes: pictures, prompts, references."""
CHECKPOINT = ("trainer_state.json",)
"""Of a checkpoint, beside what a run folder has; optimizer and random states stay."""
EXPLAIN_FILE, GIVEN_FOLDER = "explain/explain.json", "explain/given"
"""What explains answers, and where that is kept of pictures that somebody gave by hand."""
DRAWN = ("mmft/scenes", "mmft/scenes-preferences", "mmft/scenes-ratings", "mmft/scenes-rated-captions")
"""Data sets that mmft draws itself, which nobody owns."""
SIMULATED = ("mmft/FindObject-", "mmft/SceneQuestions-", "MiniGrid-", "BabyAI-")
"""Environments of which the same holds, by how their ids begin."""
REASONS = (
    ("checkpoint-*", "a checkpoint; --include-checkpoints sends its weights"),
    (MERGED_FOLDER, "the whole model again; it can be pushed as a model of its own"),
    ("training_args.bin", "pickled settings, which may hold a token"),
    ("optimizer*", "state of the optimizer"),
    ("scheduler.pt", "state of the optimizer"),
    ("rng_state*", "random state"),
    ("runs", "a tracker's log"),
    ("wandb", "a tracker's log"),
    ("trackio", "a tracker's log"),
    ("events.out.*", "a tracker's log"),
    ("evaluation.json", "made after the run"),
    ("generations.jsonl", "made after the run"),
)
GIVEN = "explains pictures that you gave by hand, which are never sent"
UNKNOWN = "not on the list of what is shared"
ROWS = "shows rows of the data; --samples sends it"


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file that goes to the hub."""

    path: str
    """In the repository, and from the run folder."""
    source: Path
    content: bytes | None = None
    """What is sent instead of the file, where the copy differs."""

    @property
    def size(self) -> int:
        return self.source.stat().st_size if self.content is None else len(self.content)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that stays."""

    path: str
    why: str


def read_settings(folder: Path) -> dict[str, Any]:
    """What config.yaml says; nothing without one."""
    path = folder / CONFIG_FILE
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return settings if isinstance(settings, dict) else {}


def kind_of(folder: Path) -> Kind:
    """What a folder holds.

    Raises:
        ConfigError: there is no such folder, or nothing in it that could be loaded again.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give the folder of a finished run.")
    if (folder / AGENT_FILE).is_file():
        return "agent"
    if (folder / REWARD_MODEL_FILE).is_file():
        return "reward_model"
    if not any((folder / name).is_file() for name in (ADAPTER_FILE, MODEL_CONFIG_FILE)):
        raise ConfigError(
            f"{folder} holds no adapter, no model, no agent and no reward model: there is nothing to push. "
            "Give the folder of a finished run."
        )
    settings = read_settings(folder)
    if "completion_choice" in settings:
        return "sft"
    # Of a policy that was trained in Python there are no settings, but its critic or its rewards.
    trained = any((folder / name).is_file() for name in OF_KIND["policy"])
    return "policy" if settings or trained else "model"


def is_drawn(settings: dict[str, Any]) -> bool:
    """Whether a run saw nothing but what mmft or a simulator draws."""
    if "env" in settings:
        return str(settings["env"]).startswith(SIMULATED)
    return settings.get("dataset_name") in DRAWN


def explains_given(folder: Path) -> bool:
    """Whether the run's explanations and report show pictures that somebody gave by hand."""
    path = folder / EXPLAIN_FILE
    if not path.is_file():
        return False
    try:
        keys = list(json.loads(path.read_text(encoding="utf-8")).get("samples") or {})
    except (ValueError, AttributeError, TypeError):
        return True  # not one of ours: nobody knows what it shows
    return any(re.match(r"\W*given", str(key)) for key in keys)


def collect(
    folder: Path, kind: Kind, *, samples: bool, checkpoints: bool
) -> tuple[list[SharedFile], list[LeftOut]]:
    """The files that go, and what stays with its reason; both in order.

    Raises:
        HubError: something on the list is a link to outside of the folder.
    """
    root = folder.resolve()
    allowed = Allowed(kind, samples=samples, checkpoints=checkpoints)
    shared, left = [], []
    for path in _walk(folder, allowed):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            left.append(LeftOut(f"{name}/", allowed.why_not(name)))
        elif not (allowed.takes(name) or allowed.enters(name)):
            left.append(LeftOut(name, allowed.why_not(name)))
        elif not path.resolve().is_relative_to(root):
            raise HubError(
                f"{path} is a link to {path.resolve()}, outside of the run folder. Nothing was sent; put the "
                "file itself there, or remove the link."
            )
        elif path.is_file():
            shared.append(SharedFile(name, path))
    return shared, left


def _walk(folder: Path, allowed: Allowed, below: str = "") -> Iterator[Path]:
    """Files and links, and the folders that hold nothing on the list, in order."""
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        name = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=False) and allowed.enters(name):
            yield from _walk(Path(entry.path), allowed, f"{name}/")
        else:
            yield Path(entry.path)


class Allowed:
    """The list for one kind of run."""

    def __init__(self, kind: Kind, *, samples: bool, checkpoints: bool) -> None:
        own = (*WEIGHTS, *PROCESSOR, *OF_KIND[kind])
        base = (f"{BASE_FOLDER}/{name}" for name in (*WEIGHTS, *PROCESSOR))
        saved = (f"checkpoint-*/{name}" for name in (*own, *CHECKPOINT)) if checkpoints else ()
        self.patterns = [*own, *RECORD, *base, *saved, *(SAMPLES if samples else ())]

    def takes(self, name: str) -> bool:
        """Whether a file goes."""
        return matches(name, self.patterns)

    def enters(self, name: str) -> bool:
        """Whether files of a folder may go."""
        depth = name.count("/") + 1
        parents = {"/".join(each.split("/")[:depth]) for each in self.patterns if each.count("/") >= depth}
        return matches(name, parents)

    def why_not(self, name: str) -> str:
        """Why a file or folder stays."""
        if name == GIVEN_FOLDER or name.startswith(f"{GIVEN_FOLDER}/"):
            return GIVEN
        if matches(name, SAMPLES) or any(each.startswith(f"{name}/") for each in SAMPLES):
            return ROWS
        last = PurePosixPath(name).name
        return next((why for pattern, why in REASONS if fnmatchcase(last, pattern)), UNKNOWN)


def is_ours(name: str) -> bool:
    """Whether a file of a repository is one that a push of some kind of run sends; checkpoints stay there."""
    return any(Allowed(kind, samples=True, checkpoints=False).takes(name) for kind in OF_KIND)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path is on a list; `*` stands for anything but a slash."""
    parts = name.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def is_text(name: str) -> bool:
    """Whether a file is read by people and may hold what somebody typed."""
    return re.search(r"\.(json|jsonl|yaml|md|html|txt|jinja)$", name) is not None
