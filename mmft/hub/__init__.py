"""Finished runs on the Hugging Face hub: what is uploaded, what never is, and what to do when it fails.

Downloading is `models.snapshots`, loading a run `runs`; what cards say is `report`.
"""

from __future__ import annotations

from mmft.hub.plan import PushPlan
from mmft.hub.pushing import prepare_repo, push
from mmft.hub.training import prepare_push, push_trained, repo_of

__all__ = ["PushPlan", "prepare_push", "prepare_repo", "push", "push_trained", "repo_of"]
