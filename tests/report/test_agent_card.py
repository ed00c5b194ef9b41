"""The card of an agent says what it does, how well, and how to load it."""

from __future__ import annotations

import dataclasses

import yaml
from huggingface_hub import ModelCard

from mmft.hub.portable import without_rows
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
    assert card.startswith("---\nbase_model: some-org/some-vlm\nlibrary_name: transformers\n")
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


def test_the_results_are_in_the_metadata_as_the_hub_reads_them():
    card = ModelCard(agent_card(dataclasses.replace(FACTS, means={"return": 0.9, "success": 0.75})))
    first, second = card.data.eval_results
    assert (first.task_type, first.dataset_name) == ("reinforcement-learning", "mmft/FindObject-v0")
    assert [(each.metric_type, each.metric_value) for each in (first, second)] == [
        ("return", 0.9),
        ("success", 0.75),
    ]
    assert card.data.pipeline_tag == "reinforcement-learning"
    assert ModelCard(agent_card(FACTS)).data.eval_results is None


def test_pictures_of_episodes_are_rows_and_curves_are_none():
    card = agent_card(dataclasses.replace(FACTS, pictures=[CURVES_FILE, EPISODE_FILE, MOVING_FILE]))
    kept = without_rows(card)
    assert [name in kept for name in (CURVES_FILE, EPISODE_FILE, MOVING_FILE)] == [True, False, False]
    assert without_rows(agent_card(FACTS)) == agent_card(FACTS)


def test_the_card_says_what_it_was_made_with_and_how_it_is_opened():
    card = agent_card(dataclasses.replace(FACTS, summary={"steps": 3, "wall_seconds": 4.0, "device": "cpu"}))
    assert card.endswith("- torch 2.0\n- 3 optimizer steps in 4 s on cpu\n")
    assert "`mmft.Run.from_pretrained('runs/mine').load_agent()`" in card


def test_hostile_names_break_nothing():
    card = agent_card(dataclasses.replace(FACTS, base="x`\n---\n", environment="<b>", warnings=["<b>"]))
    assert "`` x` --- `` as an agent in `<b>`, trained" in card
    assert "- &lt;b&gt;\n" in card
    assert ModelCard(card).data.base_model is None
