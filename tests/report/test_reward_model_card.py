"""The card of a reward model: what it learned, how far to trust it, and what the hub reads of it."""

from __future__ import annotations

import dataclasses

from huggingface_hub import ModelCard

from mmft.report.record import Change
from mmft.report.reward_model_card import GroupChange, RewardModelFacts, reward_model_card

FACTS = RewardModelFacts(
    folder="runs/mine",
    base="some-org/some-vlm",
    dataset="some-org/preferences",
    learned="preferences",
    settings={"eval_split": "test", "train_split": "train", "loss_type": "bradley_terry"},
    changes=[Change("accuracy", 0.5, 0.75)],
    groups=[GroupChange("plain", 4, 0.5, 0.75), GroupChange("a|b", 2, 0.5, 1.0)],
    group_measure="accuracy",
    group_column="kind",
    num_rows=6,
    versions={"torch": "2.0"},
    summary={"steps": 3, "wall_seconds": 4.0},
)


def test_the_results_are_in_the_metadata_as_the_hub_reads_them():
    card = ModelCard(reward_model_card(FACTS))
    assert (card.data.library_name, card.data.tags) == ("transformers", ["mmft", "reward-model"])
    assert (card.data.base_model, card.data.datasets) == ("some-org/some-vlm", ["some-org/preferences"])
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.75, "test")
    assert result.metric_name == "accuracy (before training: 0.500)"


def test_the_card_says_what_was_learned_on_what_and_by_what():
    card = reward_model_card(FACTS)
    assert (
        "A reward model on `some-org/some-vlm`, trained by mmft on preferences of `some-org/preferences`."
        in card
    )
    assert "- held out: 6 rows of the split `test`" in card
    assert "| plain | 4 | 0.500 | 0.750 |\n| `a\\|b` | 2 | 0.500 | 1.000 |" in card
    assert "## Limits\n\nIt knows completions like those" in card
    assert card.endswith("- torch 2.0\n- 3 optimizer steps in 4 s\n")


def test_hostile_names_break_nothing():
    card = reward_model_card(dataclasses.replace(FACTS, dataset="x`\n---\n", base="/data/model"))
    read = ModelCard(card)
    assert read.data.base_model is None
    assert "of `` x` --- ``." in read.text
