"""A trained policy from its folder: pretrained model, adapters, weights that trained beside them, critic."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmft.engine.actor_critic import HEADS_FILE, VLMActorCritic
from mmft.engine.backbone_module import load_saved_backbone
from mmft.errors import ConfigError
from mmft.models.adapters import ADAPTER_FILE
from mmft.models.snapshots import local_folder

BASE_FOLDER = "base"
"""Inside a run's folder: the model it started from, where that exists nowhere else."""
VALUE_HEAD = "value_head."


def load_policy(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    **kwargs: Any,
) -> VLMActorCritic:
    """The policy of a run, with its critic if it has one, in evaluation mode; nothing in it trains.

    Args:
        path: the run's folder, or its hub id.
        base: the pretrained model under an adapter, if it is no longer where it was.
        revision: of the hub's repository.
        base_revision: of the pretrained model's.
        device: where to put it.
        dtype: of the weights; `"auto"` keeps that of the pretrained model.
        **kwargs: for `load_backbone` (`attn_implementation`, ...).

    Raises:
        ConfigError: the folder holds neither an adapter nor a model.

    Example:
        >>> from mmft import load_policy
        >>> from mmft.tiny import captioner_path
        >>> policy = load_policy(captioner_path())  # the folder of a run, or of any model
        >>> policy.value_head is None, policy.training
        (True, False)
    """
    folder = local_folder(path, revision=revision)
    adapter = (folder / ADAPTER_FILE).is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds neither {ADAPTER_FILE} nor config.json: no policy was saved there. Give the "
            "folder of a finished run."
        )
    name = base_name(folder, base) if adapter else None
    if adapter and base_revision is not None:
        kwargs["revision"] = base_revision
    saved = load_saved_backbone(
        folder, "adapter" if adapter else "full", name, dtype, what="policy", **kwargs
    )
    policy = VLMActorCritic(saved, critic=has_critic(folder), reference=False)
    policy.load_heads(folder)
    return policy.requires_grad_(False).eval().to(device)


def base_name(folder: Path, given: str | None = None) -> str | None:
    """What the adapter of this folder was trained on: as given, beside it, or as it was called then."""
    if given is not None:
        return given
    beside = folder / BASE_FOLDER
    if (beside / "config.json").is_file():
        return str(beside)
    settings = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    name: str | None = settings.get("base_model_name_or_path")
    return name


def has_critic(folder: Path) -> bool:
    """Whether a critic of completions was saved in this folder."""
    path = folder / HEADS_FILE
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return any(name.startswith(VALUE_HEAD) for name in file.keys())
