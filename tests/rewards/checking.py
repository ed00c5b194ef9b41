"""Rows to check rewards on, and what the checker says of a reward that breaks the protocol."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import check

PLAIN = {"prompts": ["p", "q"], "completions": ["x", "yy"]}


def problems(reward: Any, **rows: Any) -> list[str]:
    """What the checker says of a reward, line by line."""
    with pytest.raises(ValueError, match="breaks the reward protocol") as caught:
        check(reward, **(rows if "prompts" in rows else PLAIN | rows))
    headline, *listed = str(caught.value).split("\n- ")
    assert headline.endswith("breaks the reward protocol:")
    return listed
