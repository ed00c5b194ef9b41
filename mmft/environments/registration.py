"""The ids under which gymnasium makes the shipped environments."""

from __future__ import annotations

import gymnasium

ENVIRONMENTS = {
    "mmft/FindObject-v0": "mmft.environments.find_object:FindObject",
    "mmft/Rows-v0": "mmft.environments.rows:RowsEnvironment",
    "mmft/SceneQuestions-v0": "mmft.environments.scene_questions:SceneQuestions",
}
"""Id -> where the class is; it is imported when one is made."""


def register_environments() -> None:
    """Makes the ids known to gymnasium; calling it again changes nothing."""
    for name, home in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, home)
