"""What one process holds of a rollout, cut into micro-batches and kept through checkpoints.

Shapes: N completions, R completion tokens, B prompts; completions of one prompt stand together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmft.engine.actor_critic import Prompts
from mmft.engine.packing import Completions
from mmft.errors import ConfigError

PROGRESS_FILE = "progress.json"
TENSORS = ("old_logps", "ref_logps", "values", "token_rewards", "advantages", "returns", "train_mask")
"""(N, R) fields."""
SAMPLE_TENSORS = ("scores", "ended", "weights")
"""(N,) fields."""


@dataclass(frozen=True, slots=True)
class Experience:
    """Prompt groups with everything the objective needs; `None` where an algorithm has no use for it."""

    number: int
    """Which rollout of the run this is."""
    rows: list[int]
    """(B) rows of the training set."""
    prompts: Prompts
    """(B) encoded prompts, or raw ones where the vision path trains or prompts cannot be shared."""
    completions: Completions
    """N completions."""
    scores: Tensor
    """(N,) total reward, NaN where no reward could judge."""
    ended: Tensor
    """(N,) True where an end token was said."""
    train_mask: Tensor
    """(N, R) the completion tokens that train: those of judged completions."""
    old_logps: Tensor | None = None
    """(N, R) under the policy that sampled; None where completions were given, not sampled."""
    ref_logps: Tensor | None = None
    """(N, R) under the reference policy."""
    values: Tensor | None = None
    """(N, R) of the critic at sampling time."""
    token_rewards: Tensor | None = None
    """(N, R) what dense rewards pay for each token, beside the score at the end; 0 at padding."""
    advantages: Tensor | None = None
    """(N, R)"""
    returns: Tensor | None = None
    """(N, R) what the critic should have said."""
    weights: Tensor | None = None
    """(N,) what each completion's likelihood counts."""

    def take(self, groups: list[int]) -> Experience:
        """The named prompt groups, trimmed to their longest completion."""
        index, device = self.completions.prompt_index, self.scores.device
        places = [(index == group).nonzero().squeeze(1) for group in groups]
        keep = torch.cat(places)
        width = max(int(self.completions.lengths[keep].max()), 1)
        tensors = {name: _part(getattr(self, name), keep, width) for name in TENSORS}
        tensors |= {name: _part(getattr(self, name), keep) for name in SAMPLE_TENSORS}
        counts = torch.tensor([len(place) for place in places], device=device)
        return replace(
            self,
            rows=[self.rows[g] for g in groups],
            prompts=cast(Prompts, [self.prompts[g] for g in groups]),
            completions=Completions(
                self.completions.ids[keep, :width],
                self.completions.mask[keep, :width],
                torch.arange(len(groups), device=device).repeat_interleave(counts),
            ),
            **cast(dict[str, Any], tensors),
        )

    def with_tensors(self, **tensors: Tensor | None) -> Experience:
        """A copy with some fields set."""
        return replace(self, **cast(dict[str, Any], tensors))

    def save(self, path: str | os.PathLike[str], fingerprint: dict[str, int]) -> None:
        """Writes all but the prompts, which are encoded again from their rows.

        `fingerprint` is the plan's, by which a resumed run knows that the rollout is its own."""
        tensors = {
            "rows": torch.tensor(self.rows),
            "ids": self.completions.ids,
            "mask": self.completions.mask,
            "prompt_index": self.completions.prompt_index,
        }
        named = {name: getattr(self, name) for name in (*TENSORS, *SAMPLE_TENSORS)}
        tensors |= {name: value for name, value in named.items() if value is not None}
        # Cloned: safetensors refuses tensors that share memory, as two fields may.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(tensors, path, metadata={"rollout": str(self.number), "plan": json.dumps(fingerprint)})


def load_experience(path: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """The fields of a saved `Experience` except its prompts."""
    with safe_open(Path(path), framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        number = int(file.metadata()["rollout"])
    completions = Completions(tensors.pop("ids"), tensors.pop("mask"), tensors.pop("prompt_index"))
    return {"number": number, "rows": tensors.pop("rows").tolist(), "completions": completions, **tensors}


def check_saved_rollouts(folder: Path, fingerprint: dict[str, int]) -> None:
    """A rollout that was saved half-way belongs to one number of processes and one set of batch sizes.

    Raises:
        ConfigError: the checkpoint in `folder` holds a rollout of another plan.
    """
    saved: dict[str, int] = {}
    for path in sorted(folder.glob("rollout_*.safetensors"))[:1]:
        with safe_open(path, framework="pt") as file:
            saved = json.loads(file.metadata()["plan"])
    changed = [f"{n}={saved[n]} (now {fingerprint[n]})" for n in saved if fingerprint[n] != saved[n]]
    if changed:
        raise ConfigError(
            f"`resume_from_checkpoint`: {folder} was saved in the middle of a rollout with "
            f"{', '.join(changed)}. Resume with the processes, batch sizes, `num_mini_batches`, "
            "`num_ppo_epochs`, seed and rows of the stopped run."
        )


def save_progress(folder: Path, progress: dict[str, Any]) -> None:
    """Writes where a run stands in its rollouts."""
    (folder / PROGRESS_FILE).write_text(json.dumps(progress), encoding="utf-8")


def load_progress(folder: Path, origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `save_progress` wrote.

    `origin` is the part that must be what it is now: another algorithm has other weights and another state.

    Raises:
        ConfigError: the checkpoint has none, or one of another origin.
    """
    path = folder / PROGRESS_FILE
    if not path.is_file():
        raise ConfigError(
            f"`resume_from_checkpoint`: {PROGRESS_FILE} is missing in {folder}, so that nobody knows which "
            "rollout comes next. Resume from a checkpoint of an online trainer of this version."
        )
    progress: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    expected = {} if origin is None else origin
    changed = [f"{n}={progress.get(n)} (now {now})" for n, now in expected.items() if progress.get(n) != now]
    if changed:
        raise ConfigError(
            f"`resume_from_checkpoint`: {folder} was saved by a run with {', '.join(changed)}. Resume with "
            "the algorithm and the settings of the stopped run, or start a new run from its weights."
        )
    return progress


def given(tensor: Tensor | None, name: str) -> Tensor:
    """A field that may be None, where the algorithm cannot do without it."""
    if tensor is None:
        raise ConfigError(f"`{name}` is missing from this rollout, and the algorithm cannot do without it.")
    return tensor


def _part(tensor: Tensor | None, keep: Tensor, width: int | None = None) -> Tensor | None:
    if tensor is None:
        return None
    return tensor[keep] if width is None else tensor[keep, :width]
