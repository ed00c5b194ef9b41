"""The model card says what was trained, on what, to what effect, and how to load it."""

from __future__ import annotations

import dataclasses

import yaml
from huggingface_hub import ModelCard

from mmft.evaluation.bootstrap import Estimate
from mmft.hub.portable import without_rows
from mmft.report.card import CardFacts, model_card
from mmft.report.card_parts import CardSample
from mmft.report.record import Change

FACTS = CardFacts(
    folder="runs/mine",
    base="some-org/some-vlm",
    dataset="imagefolder",
    rewards=["captioning"],
    settings={"learning_rate": 1e-3, "num_generations": 8, "dataset_name": "not shown"},
    changes=[Change("reward", 0.25, 0.5)],
    num_rows=12,
    versions={"torch": "2.0"},
    adapter=True,
    algorithm="a2c",
    method="A2C and a learned critic",
)


def test_the_card_of_an_adapter_names_its_base_for_the_hub():
    card = model_card(FACTS)
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "some-org/some-vlm"
    assert metadata["library_name"] == "peft"
    assert "| total reward | 0.250 | 0.500 |" in card
    assert "over 12 held-out rows" in card
    assert "PeftModel.from_pretrained(base, 'runs/mine')" in card
    assert "- learning_rate: 0.001" in card
    assert "not shown" not in card


def test_the_results_are_in_the_metadata_as_the_hub_reads_them():
    card = ModelCard(
        model_card(dataclasses.replace(FACTS, dataset="some-org/x", settings={"eval_split": "test"}))
    )
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("some-org/x", "test", 0.5)
    assert result.metric_name == "total reward (before training: 0.250)"
    assert card.data.get("base_model_relation") == "adapter"
    assert card.data.datasets == ["some-org/x"]
    assert ModelCard(model_card(dataclasses.replace(FACTS, changes=[]))).data.eval_results is None
    whole = ModelCard(model_card(dataclasses.replace(FACTS, adapter=False)))
    assert whole.data.get("base_model_relation") == "finetune"


def test_everything_a_run_is_known_by_is_on_its_card():
    settings = {
        "reward_funcs": ["bleu"],
        "eval_funcs": ["length"],
        "instruction": "Say.",
        "confidence_level": 0.9,
    }
    sample = CardSample("Say.", "a private answer", "another", picture="card/0.jpg")
    summary = {"steps": 3, "wall_seconds": 4.0}
    card = model_card(
        dataclasses.replace(
            FACTS, settings=settings, samples=[sample], summary=summary,
            differences={"reward": Estimate(0.25, 0.1, 0.4, 12)},
        )
    )  # fmt: skip
    heads = [line for line in card.splitlines() if line.startswith("## ")]
    assert heads == [
        "## Results", "## Samples", "## Data", "## Rewards", "## Limits", "## Settings", "## Use",
        "## Made with",
    ]  # fmt: skip
    assert "| total reward | 0.250 | 0.500 | +0.250 | +0.100 to +0.400 |" in card
    assert "90 % interval" in card
    assert "| `length` | watched, never optimised |" in card
    assert "- 3 optimizer steps in 4 s" in card
    assert "run = Run.from_pretrained('runs/mine')" in card
    assert "private" not in without_rows(card)


def test_hostile_names_break_neither_the_metadata_nor_the_page():
    hostile = "x`|\n---\n<script>"
    card = model_card(
        dataclasses.replace(FACTS, dataset=hostile, base=hostile, rewards=[hostile], warnings=[hostile])
    )
    read = ModelCard(card)
    assert read.data.library_name == "peft"
    assert read.text.lstrip().startswith("# mine")
    assert [line for line in card.splitlines() if line == "---"] == ["---", "---"]
    warning = card.split("## Warnings\n\n")[1].splitlines()[0]
    assert warning == "- x`| --- &lt;script&gt;"
    assert "on `` x`| --- <script> ``, to raise: `` x`| --- <script> ``." in card


def test_a_warm_start_has_no_reward_to_raise():
    facts = dataclasses.replace(FACTS, rewards=[], algorithm="sft", method="supervised fine-tuning")
    card = model_card(facts)
    assert "with supervised fine-tuning on `imagefolder`, to write its captions." in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["mmft", "sft"]


def test_weights_that_trained_beside_an_adapter_are_loaded_with_it():
    settings = {"trainable": ["projector"], "peft_method": "bottleneck"}
    card = model_card(dataclasses.replace(FACTS, settings=settings))
    assert "model = load_adapter(base, 'runs/mine')" in card
    assert "PeftModel" not in card


def test_the_card_names_the_algorithm_and_the_command_that_repeats_the_run():
    card = model_card(FACTS)
    assert "trained by mmft with A2C and a learned critic on `imagefolder`, to raise: `captioning`." in card
    assert "`mmft a2c --config config.yaml` repeats the run" in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["mmft", "a2c", "reinforcement-learning"]


def test_settings_that_were_left_unset_are_not_listed():
    card = model_card(dataclasses.replace(FACTS, settings={"kl_target": None, "entropy_coef": 0.0}))
    assert "kl_target" not in card
    assert "- entropy_coef: 0.0" in card


def test_the_card_of_a_whole_model_loads_it_directly():
    card = model_card(dataclasses.replace(FACTS, adapter=False))
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "PeftModel" not in card
    assert "AutoModelForImageTextToText.from_pretrained('runs/mine')" in card


def test_the_packaged_base_is_loaded_from_where_it_is_installed():
    card = model_card(dataclasses.replace(FACTS, base="mmft/tiny-captioner", packaged_base=True))
    assert "base_model" not in yaml.safe_load(card.split("---")[1])
    assert "AutoModelForImageTextToText.from_pretrained(captioner_path())" in card


def test_a_run_without_held_out_rows_has_no_table():
    assert "## Results" not in model_card(dataclasses.replace(FACTS, changes=[]))


def test_a_folder_is_no_base_model_of_the_hub():
    card = model_card(dataclasses.replace(FACTS, base="/data/model"))
    assert "base_model" not in yaml.safe_load(card.split("---")[1])


def test_the_card_says_how_held_out_completions_were_chosen():
    assert "12 held-out rows, decoded greedily." in model_card(FACTS)
    drawn = dataclasses.replace(FACTS, settings={"eval_temperature": 0.7})
    assert "12 held-out rows, sampled at temperature 0.7." in model_card(drawn)


def test_warnings_have_a_section_of_their_own_and_none_has_none():
    assert "## Warnings" not in model_card(FACTS)
    card = model_card(dataclasses.replace(FACTS, warnings=["The reward follows length.", "Too long."]))
    section = card.split("## Warnings\n\n")[1].split("\n\n")[0]
    assert section == "- The reward follows length.\n- Too long."
    assert card.index("| total reward |") < card.index("## Warnings") < card.index("## Settings")
