"""Regularised trainers: the step of the summed losses, what is held and what is not, copies, resumed runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from mmft.errors import ConfigError
from mmft.models.freezing import parameter_parts, trained_pretrained_weights
from mmft.objectives.regularization import squared_distance, squared_norm
from mmft.trainers.ppo import PPOTrainer
from tests.trainers.reward_support import make_reward_trainer
from tests.trainers.support import (
    make_trainer,
    moved,
    step_rows,
    trained_weights,
    without_cache,
)

SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
"""A step of SGD is the gradient; Adam's hides its size."""
EVERYTHING = ("vision", "projector", "language")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def pretrained_of(trainer: Any) -> dict[str, Tensor]:
    return trained_pretrained_weights(trainer.module.backbone.model)


def num_elements(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def logged(trainer: Any, name: str) -> list[float]:
    return [row[f"regularization/{name}"] for row in step_rows(trainer)]


# The step


def lora_products(trainer: Any) -> list[Tensor]:
    layers = [m for m in trainer.module.modules() if hasattr(m, "lora_A") and len(m.lora_A)]
    return [m.scaling["default"] * m.lora_B["default"].weight @ m.lora_A["default"].weight for m in layers]


def full_term(trainer: Any) -> Tensor:
    return squared_distance(list(pretrained_of(trainer).values()), trainer.start)


def lora_term(trainer: Any) -> Tensor:
    return squared_norm(lora_products(trainer))


def adapter_term(trainer: Any) -> Tensor:
    model = trainer.module.backbone.model
    return squared_norm([weight for weight in model.parameters() if weight.requires_grad])


class AutogradTrainer(PPOTrainer):
    """Adds the regulariser to the loss, as a textbook would."""

    term: Callable[[Any], Tensor]
    coefficient: float

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        extra = self.coefficient / self.args.gradient_accumulation_steps * self.term(self)
        return super().compute_loss(*args, **kwargs) + extra


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("setting", "term", "lora", "coefficient"),
    [
        ("l2_pretrained_coef", full_term, False, 4.0),
        ("l2_pretrained_coef", lora_term, True, 0.4),
        ("l2_adapter_coef", adapter_term, True, 0.4),
    ],
    ids=["pretrained", "lora", "adapters"],
)
def test_a_regularised_step_is_a_step_on_the_sum_of_both_losses(
    setting: str, term: Any, lora: bool, coefficient: float, accumulation: int, tmp_path: Path
):
    shared = SGD | {"lora": lora, "gradient_accumulation_steps": accumulation, "max_steps": 4}
    shared |= {"per_device_train_batch_size": 4 // accumulation}
    plain, regularized = (
        make_trainer(tmp_path / str(c), **{setting: c}, **shared) for c in (0.0, coefficient)
    )
    expected = make_trainer(tmp_path / "sum", trainer_class=AutogradTrainer, **shared)
    expected.term, expected.coefficient = term, coefficient
    expected.start = [weight.detach().clone() for weight in pretrained_of(expected).values()]
    for trainer in (plain, regularized, expected):
        trainer.train()
    found, right, without = (trained_weights(t) for t in (regularized, expected, plain))
    for name, weight in right.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6, msg=name)
    names = list(right)
    change = squared_distance([without[name] for name in names], [right[name] for name in names])
    assert change.sqrt() > 5e-3, "a step without the regulariser would be another one"
    norms = ([row["grad_norm"] for row in step_rows(trainer)] for trainer in (regularized, expected))
    assert next(norms) == pytest.approx(next(norms), rel=1e-4), "clipping sees the sum"


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_logged_is_the_distance_at_the_step_and_its_multiple(lora: bool, tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=lora, l2_pretrained_coef=0.3, max_steps=3)
    start = [weight.detach().clone() for weight in pretrained_of(trainer).values()]
    trainer.train()
    trainer.start = start
    distances = logged(trainer, "distance")
    assert distances[0] == 0 < distances[1] < distances[2]
    assert logged(trainer, "l2_pretrained") == pytest.approx([0.3 * each**2 for each in distances])
    (now,) = (value for name, value in trainer.regularizer.add_gradients().items() if "distance" in name)
    term = lora_term(trainer) if lora else full_term(trainer)
    assert now == pytest.approx(term.item() ** 0.5, rel=1e-5)


def test_nothing_is_logged_or_kept_where_nothing_is_asked_for(tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=False, max_steps=1)
    trainer.train()
    assert trainer.regularizer is None
    assert not [name for row in trainer.state.log_history for name in row if "regularization" in name]
    held = make_trainer(tmp_path / "beta", l2_adapter_coef=0.1, max_steps=1)
    held.train()
    names = {name for name in step_rows(held)[0] if "regularization" in name}
    assert names == {"regularization/l2_adapter"}


def test_the_further_weights_are_held_the_less_they_move(tmp_path: Path):
    distances = []
    for coefficient in (1e-6, 1.0, 9.0):
        settings = SGD | {"lora": False, "l2_pretrained_coef": coefficient, "max_grad_norm": 0.0}
        trainer = make_trainer(tmp_path / str(coefficient), **settings)
        trainer.train()
        distances.append(logged(trainer, "distance")[-1])
    assert distances[0] > 1.2 * distances[1] > 1.5 * distances[2] > 0


@pytest.mark.parametrize("lora", [False, True])
def test_the_critic_is_held_by_nothing(lora: bool, tmp_path: Path):
    """New heads have no pretrained value: nothing but the loss moves them."""
    coefficients = {"l2_pretrained_coef": 1e3} | ({"l2_adapter_coef": 1e3} if lora else {})
    trainer = make_trainer(tmp_path, lora=lora, **coefficients)
    with torch.no_grad():
        for weight in trainer.module.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
    trainer.regularizer.add_gradients()
    head = dict(trainer.module.value_head.named_parameters())
    assert head
    assert all(weight.grad is None for weight in head.values())
    backbone = [w for w in trainer.module.backbone.parameters() if w.requires_grad]
    assert all(weight.grad.abs().max() > 1 for weight in backbone)
    assert all(w.grad is None for w in trainer.module.backbone.parameters() if not w.requires_grad)


def test_weights_that_the_loss_does_not_reach_are_held_as_well(tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=False, trainable=("vision",), l2_pretrained_coef=0.5)
    (name, weight), *_ = pretrained_of(trainer).items()
    with torch.no_grad():
        weight.add_(1.0)
    assert weight.grad is None
    trainer.regularizer.add_gradients()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight), msg=name)


def test_gradients_are_scaled_like_the_losses_of_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gradients = []
    for scale in (1.0, 1024.0):
        trainer = make_trainer(tmp_path / str(scale), lora=True, l2_pretrained_coef=0.5, l2_adapter_coef=0.1)
        weights = [weight for weight in trainer.module.backbone.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.1)
        monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: torch.zeros(()))
        if scale > 1:
            trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 1024.0)
        trainer.accelerator.gradient_state._set_sync_gradients(False)
        trainer.training_step()
        assert all(weight.grad is None for weight in weights), "the step is not complete"
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        trainer.training_step()
        gradients.append([weight.grad / scale for weight in weights])
        values = trainer.metric_log.flush()
        assert values["regularization/l2_adapter"] == pytest.approx(0.1 * squared_norm(weights).item())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# Which weights, and how strongly


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [
        (0.5, {"vision": 0.5, "projector": 0.5, "language": 0.5, "head": 0.5}),
        ({"language": 0.5}, {"language": 0.5, "head": 0.5}),
        ({"language": 0.5, "head": 2.0}, {"language": 0.5, "head": 2.0}),
        ({"language": 0.5, "head": 0.0}, {"language": 0.5}),
        ({"vision": 3, "projector": "1e-2"}, {"vision": 3.0, "projector": 0.01}),
    ],
)
def test_each_part_has_its_coefficient_and_the_head_that_of_the_language_model(
    coefficients: Any, expected: dict[str, float], tmp_path: Path
):
    trainer = make_trainer(
        tmp_path, lora=False, trainable=EVERYTHING, l2_pretrained_coef=coefficients, kl_coef=0.0
    )
    parts = {id(weight): part for part, _, weight in parameter_parts(trainer.module.backbone.base)}
    weights = pretrained_of(trainer).values()
    with torch.no_grad():
        for weight in weights:
            weight.add_(1.0)
    values = trainer.regularizer.add_gradients()
    for weight in weights:
        coefficient = expected.get(parts[id(weight)], 0.0)
        found = torch.zeros(()) if weight.grad is None else weight.grad
        torch.testing.assert_close(found, torch.full_like(found, 2 * coefficient))
    held = [weight for weight in weights if parts[id(weight)] in expected]
    assert trainer.regularizer.num_copied == num_elements(held), "what is not held is not copied"
    total = sum(expected[parts[id(weight)]] * weight.numel() for weight in held)
    assert values["regularization/l2_pretrained"] == pytest.approx(total, rel=1e-5)
    assert values["regularization/distance"] == pytest.approx(num_elements(held) ** 0.5, rel=1e-5)


# Copies


@pytest.mark.parametrize("trainable", [("language",), ("head",), ("*layers.1.*",), EVERYTHING])
@pytest.mark.parametrize("device", ["model", "cpu"])
def test_the_trainable_weights_are_copied_once_or_shared_with_the_reference(
    trainable: tuple[str, ...], device: str, tmp_path: Path
):
    settings = {"lora": False, "trainable": trainable, "l2_pretrained_coef": 0.1}
    alone = make_trainer(tmp_path / "alone", kl_coef=0.0, l2_pretrained_device=device, **settings)
    assert alone.module.frozen_copy is None
    assert alone.regularizer.num_copied == num_elements(pretrained_of(alone).values())
    beside = make_trainer(tmp_path / "beside", kl_coef=0.1, l2_pretrained_device=device, **settings)
    assert beside.module.frozen_copy is not None
    assert beside.regularizer.num_copied == 0


def test_a_reference_on_another_device_is_not_shared(tmp_path: Path):
    trainer = make_trainer(tmp_path, lora=False, l2_pretrained_coef=0.1)
    trainer.module.frozen_copy.to("meta")
    trainer.regularizer = None
    trainer._hold_weights()
    assert trainer.regularizer.num_copied == num_elements(pretrained_of(trainer).values())


def test_lora_keeps_no_copy(tmp_path: Path):
    trainer = make_trainer(tmp_path, l2_pretrained_coef=0.1, l2_adapter_coef=0.1)
    assert trainer.regularizer.num_copied == 0


def test_shared_and_own_copies_make_the_same_step(tmp_path: Path):
    settings = SGD | {"lora": False, "l2_pretrained_coef": 0.4, "max_steps": 3}
    shared = make_trainer(tmp_path / "shared", **settings)
    own = make_trainer(tmp_path / "own", **settings)
    own.module._frozen_copy, frozen = [], own.module._frozen_copy
    own.regularizer = None
    own._hold_weights()
    own.module._frozen_copy = frozen
    assert own.regularizer.num_copied > shared.regularizer.num_copied == 0
    for trainer in (shared, own):
        trainer.train()
    assert moved(trained_weights(shared), trained_weights(own)) == set()


# Resumed runs


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": False, "l2_pretrained_coef": 0.5},
        {"lora": False, "l2_pretrained_coef": 0.5, "kl_coef": 0.0},
        {"l2_pretrained_coef": 0.5, "l2_adapter_coef": 0.1},
        {"trainable": ("projector",), "l2_pretrained_coef": {"projector": 0.5}, "kl_coef": 0.0},
    ],
    ids=["shared", "copied", "lora", "beside lora"],
)
def test_a_resumed_run_is_held_near_the_pretrained_weights(settings: dict[str, Any], tmp_path: Path):
    settings = settings | {"save_strategy": "steps", "save_steps": 1, "max_steps": 7}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert moved(trained_weights(resumed), trained_weights(whole)) == set()
    assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))
    assert logged(whole, "distance")[3] > 0


def test_a_resumed_reward_model_is_held_near_the_pretrained_weights(tmp_path: Path):
    settings = {"training": "full", "l2_pretrained_coef": 0.5, "save_strategy": "steps", "save_steps": 2}
    settings |= {"max_steps": 4, "logging_steps": 1}
    whole = make_reward_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert whole.regularizer.num_copied == num_elements(pretrained_of(whole).values())
    assert all(weight.grad is None for weight in whole.reward_model.reward_head.parameters())
    resumed = make_reward_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    state, expected = resumed.reward_model.state_dict(), whole.reward_model.state_dict()
    assert moved(state, expected) == set()
    history = [row["regularization/distance"] for row in whole.state.log_history if "loss" in row]
    assert history[0] == 0 < history[-1]
    again = [row["regularization/distance"] for row in resumed.state.log_history if "loss" in row]
    assert again == history


# What cannot be held


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora": False, "l2_adapter_coef": 0.1},
            r"`l2_adapter_coef` is 0.1, but no adapter trains\. .* \(`use_peft: true`\)",
        ),
        (
            {"lora": False, "l2_pretrained_coef": {"vision": 0.1}},
            "is 0.1 for vision, where no pretrained weight and no LoRA",
        ),
        (
            {"l2_pretrained_coef": {"language": 0.1, "projector": 2}},
            "is 2 for projector, where no pretrained weight",
        ),
        ({"l2_adapter_coef": {"vision": 0.1}}, "is 0.1 for vision, where no adapter trains. Train"),
    ],
)
def test_a_coefficient_that_nothing_answers_to_is_an_error(
    settings: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **settings)


def test_a_frozen_reward_model_has_nothing_to_hold(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"`l2_pretrained_coef` is 0\.1, but no pretrained weight and no LoRA"
    ):
        make_reward_trainer(tmp_path, training="frozen", l2_pretrained_coef=0.1)


@pytest.mark.parametrize("kind", ["DeepSpeed", "FSDP 1"])
def test_engines_that_keep_gradients_to_themselves_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(tmp_path, l2_pretrained_coef=0.1)
    if kind == "DeepSpeed":
        trainer.is_deepspeed_enabled = True
    else:
        trainer.is_fsdp_enabled = True
        plugin = SimpleNamespace(fsdp_version=1)
        monkeypatch.setitem(trainer.accelerator.state.__dict__, "fsdp_plugin", plugin)
    with pytest.raises(ConfigError, match="to gradients, and DeepSpeed and FSDP 1 keep"):
        trainer._check_regularization()
