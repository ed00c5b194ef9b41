"""What a run trained, as its folder tells it: one answer for the report and for whoever opens the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmft.models import agent_spec, reward_model

Kind = Literal["policy", "agent", "reward_model", "sft"]


def run_kind(folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> Kind:
    """By what was saved, else by what was set, else by the summary; runs from Python have no settings.

    Args:
        folder: of the run.
        settings: config.yaml; empty where there is none.
        summary: summary.json; empty where there is none.
    """
    if (folder / agent_spec.SPEC_FILE).is_file() or settings.get("env") or "environment" in summary:
        return "agent"
    if (folder / reward_model.SPEC_FILE).is_file() or "rating_column" in settings or "loss_type" in summary:
        return "reward_model"
    return "sft" if "completion_choice" in settings else "policy"
