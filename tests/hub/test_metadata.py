"""The metadata of cards is what the hub's own classes read back, whatever the names are."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from mmft.hub.metadata import CardMetadata, Measured, is_hub_id, one_line, slug

HOSTILE = 'it\'s: "a"\n---\n- {x: [1]} # & *y | <b>\u2028\t`z`'
METADATA = CardMetadata(
    name="mine",
    library="peft",
    tags=["mmft", "ppo"],
    pipeline_tag="image-text-to-text",
    base="some-org/some-vlm",
    relation="adapter",
    dataset="some-org/some-data",
    measured=Measured(
        dataset="some-org/some-data",
        split="test",
        task="image-text-to-text",
        results={"total reward": 0.5, "rewards/bleu": 0.25, "broken": math.nan},
        before={"total reward": 0.1},
    ),
)


def read(metadata: CardMetadata) -> ModelCard:
    return ModelCard(f"---\n{metadata.to_yaml()}---\n\n# x\n")


def test_everything_is_read_back_by_the_hub_s_own_classes():
    data = read(METADATA).data
    assert data.base_model == "some-org/some-vlm"
    assert data.get("base_model_relation") == "adapter"
    assert data.datasets == ["some-org/some-data"]
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "peft",
        "image-text-to-text",
        ["mmft", "ppo"],
    )
    assert data.model_name == "mine"
    first, second = data.eval_results
    assert (first.metric_type, first.metric_value) == ("total-reward", 0.5)
    assert first.metric_name == "total reward (before training: 0.100)"
    assert (second.metric_type, second.metric_name) == ("rewards-bleu", "rewards/bleu")
    assert (first.dataset_type, first.dataset_name, first.dataset_split) == (
        "some-org/some-data",
        "some-org/some-data",
        "test",
    )
    index = eval_results_to_model_index("mine", data.eval_results)
    assert model_index_to_eval_results(index) == ("mine", data.eval_results)


def test_what_is_no_number_is_no_result():
    assert [each.metric_type for each in read(METADATA).data.eval_results] == ["total-reward", "rewards-bleu"]
    alone = dataclasses.replace(METADATA.measured, results={"broken": math.inf})
    assert "model-index" not in yaml.safe_load(dataclasses.replace(METADATA, measured=alone).to_yaml())


def test_hostile_names_stay_texts():
    measured = Measured(dataset=HOSTILE, split=HOSTILE, task="x", results={HOSTILE: 1.0})
    hostile = CardMetadata(name=HOSTILE, library="peft", base=HOSTILE, dataset=HOSTILE, measured=measured)
    card = read(hostile)
    assert card.text.strip() == "# x"
    (result,) = card.data.eval_results
    assert "\n" not in result.dataset_name
    assert set(result.metric_type) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert card.data.base_model is None
    assert card.data.datasets is None


def test_a_base_that_is_not_on_the_hub_has_no_relation_either():
    told = yaml.safe_load(dataclasses.replace(METADATA, base="/data/model").to_yaml())
    assert {"base_model", "base_model_relation"} & set(told) == set()


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("some-org/some-vlm", True), ("imagefolder", False), ("mmft/scenes", False), ("a/b/c", False),
        ("mmft/tiny-captioner", False), ("/data/x", False), ("./x/y", False), ("~/x", False), ("x", False),
        ("some org/x", False), ("here/it-is", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_folders_and_built_in_names_are_not_on_the_hub(
    name: str | None, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here" / "it-is").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is there


def test_names_become_plain():
    assert slug(" a/b c? ") == "a-b-c"
    assert slug("?!") == "unnamed"
    assert one_line("a\n\tb\u2028c\x00d") == "a b c d"
    assert one_line("x" * 20, 10) == "xxxxxxx..."
