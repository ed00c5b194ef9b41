"""The card of an agent says what it does, how well, and how to load it."""

from __future__ import annotations

import dataclasses

import yaml

from mmft.report.agent_card import CURVES_FILE, EPISODE_FILE, MOVING_FILE, AgentFacts, agent_card

FACTS = AgentFacts(
    algorithm="dqn",
    method="deep Q-learning",
    folder="runs/mine",
    base="some-org/some-vlm",
    environment="mmft/FindObject-v0",
    arguments={"size": 3},
    kind="q",
    trained="The pretrained model is frozen.",
    table=(["8 episodes", "return"], [["random", "0.100"], ["after", "0.900"]]),
    settings={"gamma": 0.95, "env_kwargs": {}, "pca_components": None, "output_dir": "x", "dueling": False},
    versions={"torch": "2.0"},
)


def test_the_card_says_what_was_trained_and_how_well_it_does():
    card = agent_card(FACTS)
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["mmft", "dqn", "reinforcement-learning", "agent"]
    assert (
        "`some-org/some-vlm` as an agent in `mmft/FindObject-v0`, trained by mmft with deep Q-learning. The "
        "pretrained model is frozen." in card
    )
    assert "| 8 episodes | return |\n|---|---:|\n| random | 0.100 |\n| after | 0.900 |\n" in card
    assert "`mmft dqn --config config.yaml` repeats the run" in card
    assert card.startswith("---\nlibrary_name")
    assert "\n# mine\n" in card


def test_settings_that_matter_are_listed_where_they_were_set():
    section = agent_card(FACTS).split("## Settings\n\n")[1].split("\n\n")[0]
    assert section == "- gamma: 0.95\n- dueling: False"
    for use_peft in (False, True):
        settings = {"use_peft": use_peft, "lora_r": 8}
        assert ("- lora_r: 8" in agent_card(dataclasses.replace(FACTS, settings=settings))) == use_peft


def test_each_kind_of_agent_is_asked_for_what_it_says():
    assert "scores = agent([seen]).q[0]" in agent_card(FACTS)
    assert ".logits[0]" in agent_card(dataclasses.replace(FACTS, kind="actor_critic"))


def test_pictures_that_were_drawn_are_shown_and_warnings_have_a_section():
    assert "![" not in agent_card(FACTS)
    assert "## Warnings" not in agent_card(FACTS)
    card = agent_card(
        dataclasses.replace(
            FACTS, pictures=(CURVES_FILE, EPISODE_FILE, MOVING_FILE), warnings=("Odd.", "Bad.")
        )
    )
    assert "## Warnings\n\n- Odd.\n- Bad.\n" in card
    places = [card.index(f"({name})") for name in (MOVING_FILE, EPISODE_FILE, CURVES_FILE)]
    assert places == sorted(places)
