"""A reward model as a reward function: the protocol, the penalty, what is computed once and never trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmft.engine.learned_reward import LearnedReward
from mmft.engine.reward_model import VLMRewardModel
from mmft.errors import ConfigError
from mmft.models.backbone import make_backbone
from mmft.resolve import resolve_reward
from tests import zoo
from tests.engine.reward_support import perturb
from tests.learning.tasks import colour_rows

WORDS = ("red", "blue", "no colour at all")


def save_model(folder: Path, *, loss_type: str = "heteroscedastic", dropout: float = 0.3) -> Path:
    """A run's folder with a model that has an opinion."""
    backbone = make_backbone(zoo.build_model("llava"), zoo.build_processor("llava"), trainable=())
    model = VLMRewardModel(backbone, loss_type=loss_type, head_width=8, dropout=dropout)
    perturb(model.reward_head)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("reward_model"))


def samples(count: int = 2, seed: int = 0) -> dict[str, Any]:
    """Three completions for each of so many pictures, as a trainer hands them over."""
    rows = [row for row in colour_rows(count, seed) for _ in WORDS]
    return {
        "prompts": ["what colour"] * len(rows),
        "completions": list(WORDS) * count,
        "images": [[row["image"]] for row in rows],
    }


def count_towers(reward: LearnedReward) -> list[int]:
    """A list that grows whenever the vision tower runs."""
    calls: list[int] = []
    modules = reward.model.backbone.base.named_modules()
    tower = next(module for name, module in modules if name.endswith("vision_tower"))
    tower.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_rewards_are_means_without_a_penalty(folder: Path) -> None:
    reward = LearnedReward(folder, mc_samples=0)
    actual, estimate = reward(**samples()), reward.estimate(**samples())
    assert actual == estimate.mean.tolist()
    assert len(set(actual)) == 6
    assert (estimate.epistemic == 0).all()


@pytest.mark.parametrize("uncertainty", ["total", "epistemic", "aleatoric"])
def test_the_penalty_is_so_many_standard_deviations(uncertainty: str, folder: Path) -> None:
    plain = LearnedReward(folder, mc_samples=5)(**samples())
    reward = LearnedReward(folder, mc_samples=5, penalty=2.0, uncertainty=uncertainty)
    std = reward.estimate(**samples()).variance(uncertainty).sqrt()
    assert std.min() > 1e-3
    assert reward(**samples()) == pytest.approx(
        [mean - 2 * s for mean, s in zip(plain, std.tolist(), strict=True)]
    )


def test_rewards_depend_neither_on_the_batch_nor_on_the_call_nor_on_global_randomness(folder: Path) -> None:
    reward, columns = LearnedReward(folder, mc_samples=4, penalty=1.0), samples()
    before = torch.get_rng_state()
    whole = reward(**columns)
    assert torch.equal(torch.get_rng_state(), before)  # loading the model included
    order = [4, 0, 3, 5, 1, 2]
    shuffled = {name: [column[i] for i in order] for name, column in columns.items()}
    assert reward(**shuffled) == pytest.approx([whole[i] for i in order], abs=1e-5)
    small = LearnedReward(folder, mc_samples=4, penalty=1.0, batch_size=2)
    assert small(**columns) == pytest.approx(whole, abs=1e-5)
    other = LearnedReward(folder, mc_samples=4, penalty=1.0, seed=1)
    assert other(**columns) != pytest.approx(whole, abs=1e-3)


def test_the_picture_and_the_prompt_decide(folder: Path) -> None:
    reward, columns = LearnedReward(folder, mc_samples=0), samples()
    before = reward(**columns)
    swapped = reward(**columns | {"images": columns["images"][3:] + columns["images"][:3]})
    assert swapped[:3] == pytest.approx(before[3:], abs=1e-5)  # the same words, the other picture
    assert all(abs(a - b) > 1e-4 for a, b in zip(before, swapped, strict=True))
    asked = reward(**columns | {"prompts": ["which shape"] * 6})
    assert all(abs(a - b) > 1e-4 for a, b in zip(before, asked, strict=True))


def test_a_picture_is_encoded_once_and_known_by_its_content(folder: Path) -> None:
    reward = LearnedReward(folder, mc_samples=2)
    reward(**samples(count=2, seed=5))  # verification reads a prompt by itself
    calls = count_towers(reward)
    reward(**samples())
    assert len(calls) == 2
    copies = samples()
    copies["images"] = [[Image.fromarray(np.asarray(image))] for (image,) in copies["images"]]
    reward(**copies)
    assert len(calls) == 2


def test_pictures_may_come_in_any_form_of_the_protocol(folder: Path) -> None:
    reward, columns = LearnedReward(folder, mc_samples=0), samples()
    expected = reward(**columns)
    images = columns.pop("images")
    single = columns | {"image": [image for (image,) in images]}
    assert reward(**single) == expected
    assert reward(**columns, image=images) == expected
    assert reward(**columns, images=single["image"]) == expected
    messages = [[{"role": "assistant", "content": text}] for text in columns["completions"]]
    block = {"type": "text", "text": "what colour"}
    prompts = [[{"role": "user", "content": [{"type": "image"}, block]}] for _ in images]
    chat = {"prompts": prompts, "completions": messages, "images": images}
    assert reward(**chat) == pytest.approx(expected, abs=1e-5)
    # TRL's trainers put the picture into its block.
    for prompt, (image,) in zip(prompts, images, strict=True):
        prompt[0]["content"][0]["image"] = image
    assert reward(**chat) == pytest.approx(expected, abs=1e-5)


def test_rows_without_a_picture_are_judged_too(folder: Path) -> None:
    reward = LearnedReward(folder, mc_samples=0)
    bare = reward(prompts=["what"] * 2, completions=["red", "blue"])
    assert bare[0] != bare[1]
    mixed = samples()
    mixed["images"][:3] = [[], [], None]
    assert all(np.isfinite(reward(**mixed)))
    assert reward(**mixed)[3:] == pytest.approx(reward(**samples())[3:], abs=1e-5)


def test_mean_and_deviations_are_logged(folder: Path) -> None:
    logged: dict[str, list[float]] = {}
    reward = LearnedReward(folder, mc_samples=3, penalty=0.5)
    rewards = reward(**samples(), log_extra=lambda name, values: logged.update({name: values}))
    names = ["mean", "std", "epistemic_std", "aleatoric_std"]
    assert list(logged) == names
    mean, std, epistemic, aleatoric = (np.array(logged[name]) for name in names)
    np.testing.assert_allclose(std**2, epistemic**2 + aleatoric**2, rtol=1e-4)
    np.testing.assert_allclose(rewards, mean - 0.5 * std, rtol=1e-4)


def test_a_config_names_it_by_its_short_name(folder: Path) -> None:
    reward: Any = resolve_reward({"name": "reward_model", "path": str(folder), "penalty": 1.0})
    assert reward.__name__ == "reward_model"
    assert (reward.penalty, reward.uncertainty) == (1.0, "total")
    assert reward._inputs is None  # nothing is loaded before the first completion
    with pytest.raises(
        ConfigError, match=r"reward 'reward_model' cannot be made from .*elsewhere' is no folder"
    ):
        resolve_reward({"name": "reward_model", "path": str(folder / "elsewhere")})


def test_its_weights_are_no_part_of_anything_and_never_train(folder: Path) -> None:
    reward = LearnedReward(folder)
    with torch.enable_grad():
        reward(**samples())
    assert not isinstance(reward, torch.nn.Module)
    assert not any(p.requires_grad for p in reward.model.parameters())
    assert not reward.model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": -1.0}, "`penalty` must be >= 0; got -1.0"),
        ({"penalty": float("nan")}, "`penalty` must be >= 0; got nan"),
        ({"batch_size": 0}, "`batch_size` must be >= 1; got 0"),
        ({"mc_samples": -1}, "`mc_samples` must be >= 0; got -1"),
        ({"uncertainty": "all"}, "`uncertainty` must be one of total, epistemic, aleatoric; got 'all'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        LearnedReward(folder, **settings)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"loss_type": "mse"}, {"uncertainty": "aleatoric"}),
        ({"loss_type": "mse", "dropout": 0.0}, {"uncertainty": "total"}),
        ({}, {"uncertainty": "epistemic", "mc_samples": 1}),
        ({"dropout": 0.0}, {"uncertainty": "epistemic"}),
    ],
)
def test_a_penalty_without_a_variance_is_refused(
    model: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    save_model(tmp_path, **model)
    with pytest.raises(ConfigError, match=f"needs {settings['uncertainty']} variance, and there is none"):
        LearnedReward(tmp_path, penalty=1.0, **settings)
    LearnedReward(tmp_path, penalty=0.0, **settings)


def test_no_completions_have_no_rewards(folder: Path) -> None:
    assert LearnedReward(folder)(prompts=[], completions=[], images=[]) == []
