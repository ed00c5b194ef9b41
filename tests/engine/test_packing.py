"""The packed layout by hand: which column holds what, who sees whom, at which position."""

from __future__ import annotations

import torch
from torch import Tensor

from mmft.engine.packing import (
    Completions,
    decode_visibility,
    pack,
    packed_positions,
    packed_visibility,
    prompt_visibility,
)
from mmft.models.prompts import PromptBatch, PromptEncoding, collate_prompts

BOTH = ("full_attention", "sliding_attention")
PAD = 9


def completions(*groups: list[list[int]]) -> Completions:
    """Completions of each prompt as lists of ids."""
    rows = [row for group in groups for row in group]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    return Completions(ids, mask, torch.tensor([i for i, group in enumerate(groups) for _ in group]))


def prompts(*lengths: int, axes: int = 1, visible: dict[str, Tensor] | None = None) -> PromptBatch:
    """Causal prompts with positions 0, 1, 2, ...; `visible` belongs to the first."""
    return collate_prompts([
        PromptEncoding(torch.zeros(n, 2), torch.arange(n).expand(axes, -1), visible if i == 0 else None)
        for i, n in enumerate(lengths)
    ])  # fmt: skip


def picture(visible: Tensor) -> list[str]:
    """Rows of a (Q, K) mask as text: x sees, . does not."""
    return ["".join("x" if cell else "." for cell in row) for row in visible.tolist()]


def test_branches_follow_one_another_without_their_last_token() -> None:
    layout = pack(completions([[10, 11, 12], [20], [30, 31]], [[40, 41, 42, 43]]), 2, 5, PAD)
    assert layout.ids.tolist() == [[10, 11, 30], [40, 41, 42]]
    assert layout.branch.tolist() == [[0, 0, 2], [3, 3, 3]]
    assert layout.step.tolist() == [[0, 1, 0], [0, 1, 2]]
    # First tokens are predicted by the prompt's last column (4), others by the token before them (5, 6, ...).
    assert layout.predictor.tolist() == [[4, 5, 6, 4], [4, 4, 4, 4], [4, 7, 4, 4], [4, 5, 6, 7]]


def test_shorter_rows_are_padded_at_the_end() -> None:
    layout = pack(completions([[10, 11, 12]], [[20, 21]], []), 3, 1, PAD)
    assert layout.ids.tolist() == [[10, 11], [20, PAD], [PAD, PAD]]
    assert layout.branch.tolist() == [[0, 0], [1, -1], [-1, -1]]


def test_every_branch_restarts_behind_its_prompt_on_all_axes() -> None:
    encoding = PromptEncoding(torch.zeros(3, 2), torch.tensor([[0, 1, 2], [0, 5, 3], [0, 1, 1]]), None)
    batch = collate_prompts(
        [encoding, PromptEncoding(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.long), None)]
    )
    layout = pack(completions([[10, 11, 12], [20, 21]], [[30, 31, 32]]), 2, 3, PAD)
    positions = packed_positions(batch, layout)
    # max over all axes is 5; a text-only prompt of one axis holds on all three.
    assert positions[:, 0].tolist() == [[0, 1, 2, 6, 7, 6], [0, 5, 3, 6, 7, 6], [0, 1, 1, 6, 7, 6]]
    assert positions[:, 1].tolist() == [[0, 0, 0, 1, 2, 1]] * 3


def test_a_completion_token_sees_its_prompt_and_its_own_branch() -> None:
    layout = pack(completions([[10, 11, 12], [20, 21]]), 1, 3, PAD)
    visible = packed_visibility(prompts(3), layout, ("full_attention",), None)["full_attention"]
    assert picture(visible[0]) == ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxx..x"]


def test_sliding_windows_count_tokens_of_prompt_and_branch() -> None:
    layout = pack(completions([[10, 11, 12], [20, 21]]), 1, 3, PAD)
    visible = packed_visibility(prompts(3), layout, BOTH, 2)
    assert picture(visible["sliding_attention"][0]) == [
        "x.....",
        "xx....",
        ".xx...",
        "..xx..",
        "...xx.",
        "..x..x",
    ]
    assert picture(visible["full_attention"][0])[-1] == "xxx..x"


def test_padding_is_seen_by_nobody_but_itself() -> None:
    layout = pack(completions([[10, 11, 12]], [[20, 21]]), 2, 3, PAD)
    visible = packed_visibility(prompts(3, 2), layout, BOTH, 2)
    # Left padding in column 0 of the second prompt, right padding in its last column.
    assert picture(visible["full_attention"][1]) == ["x....", ".x...", ".xx..", ".xxx.", "....x"]
    # The window of 2 is of real tokens.
    assert picture(visible["sliding_attention"][1]) == ["x....", ".x...", ".xx..", "..xx.", "....x"]


def test_a_models_own_mask_is_kept_for_the_prompt_and_opened_for_the_branches() -> None:
    own = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    batch = prompts(3, 2, visible={"full_attention": own, "sliding_attention": own})
    layout = pack(completions([[10, 11]], [[20, 21]]), 2, 3, PAD)
    visible = packed_visibility(batch, layout, BOTH, 2)
    assert picture(visible["full_attention"][0]) == ["xx..", "xx..", ".xx.", "xxxx"]
    assert picture(visible["sliding_attention"][0]) == ["xx..", "xx..", ".xx.", "..xx"]
    # The second prompt brought no mask: it is causal.
    assert picture(visible["full_attention"][1]) == ["x...", ".x..", ".xx.", ".xxx"]
    assert picture(prompt_visibility(batch, BOTH, 2)["full_attention"][0]) == ["xx.", "xx.", ".xx"]


def test_a_decoding_step_sees_what_packed_scoring_sees() -> None:
    batch = prompts(4, 2, 3)
    layout = pack(completions(*[[[10, 11, 12, 13, 14]]] * 3), 3, 4, PAD)
    for window in (None, 1, 3, 6):
        packed = packed_visibility(batch, layout, BOTH, window)
        for count in range(1, 5):
            step = decode_visibility(batch, count, BOTH, window)
            for kind in BOTH:
                assert step[kind].shape == (3, 1, 4 + count)
                assert torch.equal(step[kind][:, 0], packed[kind][:, 3 + count, : 4 + count]), (
                    window,
                    count,
                    kind,
                )
