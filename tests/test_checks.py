"""Shape checks name the culprit."""

from __future__ import annotations

import pytest
import torch

from mmft._checks import check_shapes


def test_matching_shapes_pass():
    check_shapes(
        scores=(torch.zeros(2), "B"), mask=(torch.zeros(2, 3), "BT"), logps=(torch.zeros(2, 3), "BT")
    )


def test_a_tensor_of_another_rank_is_named():
    with pytest.raises(ValueError, match=r"^`advantages` must have dims BxT; got shape \(1, 2, 1\)\.$"):
        check_shapes(logps=(torch.zeros(1, 2), "BT"), advantages=(torch.zeros(1, 2, 1), "BT"))


def test_a_tensor_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"^`mask` has T=3, but earlier arguments have T=2\.$"):
        check_shapes(logps=(torch.zeros(1, 2), "BT"), mask=(torch.zeros(1, 3), "BT"))


def test_a_size_of_one_is_not_broadcast():
    with pytest.raises(ValueError, match="`mask` has B=1, but earlier arguments have B=4"):
        check_shapes(scores=(torch.zeros(4), "B"), mask=(torch.zeros(1, 2), "BT"))
