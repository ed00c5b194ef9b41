"""Regularisers on the weights: an L2 distance to the pretrained weights, and an L2 norm of the adapters.

    L_total = L_task + sum_parts lambda_part ||theta_part - theta_pre,part||^2
    L_total = L_task + sum_parts beta_part   ||phi_part||^2

Their gradients are added to those of the task once per optimizer step, before clipping, and need no forward
of their own. The logged `loss` stays that of the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from mmft._masking import Reduce, identity
from mmft.errors import ConfigError
from mmft.models.adapter_settings import check_names
from mmft.models.backbone import Backbone
from mmft.models.freezing import PARTS
from mmft.objectives.regularization import add_distance_gradient_, lora_gradients, lora_squared_norm
from mmft.trainers.held_weights import (
    Coefficients,
    Held,
    HeldLora,
    Terms,
    adapter_terms,
    check_found,
    coefficients_by_part,
    pretrained_terms,
)

Coefficient = float | dict[str, float]
DEVICES = ("model", "cpu")
FORM = "give a number, or numbers by part, such as {language: 0.01, vision: 0.1}"


@dataclass
class RegularizationConfig(TrainingArguments):
    """Settings of `transformers.TrainingArguments`, and of what holds weights where they were."""

    # The argument parser takes the second member of a union as the type of the command line's strings.
    l2_pretrained_coef: dict[str, float] | str | float | None = field(
        default=0.0,
        metadata={
            "help": "lambda in lambda * ||theta - theta_pretrained||^2 over the pretrained weights that "
            "train, or LoRA's change of them: a number, or numbers by part, {language: 0.01, vision: 1}, "
            "where language covers the head unless that has its own; 0 is off."
        },
    )
    l2_adapter_coef: dict[str, float] | str | float | None = field(
        default=0.0,
        metadata={
            "help": "beta in beta * ||phi||^2 over the weights of adapters, in the same forms; 0 is off."
        },
    )
    l2_pretrained_device: str = field(
        default="model",
        metadata={"help": "Where the copy of the pretrained weights is kept: model (beside them) or cpu."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l2_pretrained_coef", "l2_adapter_coef"):
            setattr(self, name, parse_coefficients(getattr(self, name), name))
        if self.l2_pretrained_device not in DEVICES:
            raise ConfigError(
                f"`l2_pretrained_device` must be {' or '.join(DEVICES)}; got {self.l2_pretrained_device!r}."
            )

    @property
    def pretrained_coefficients(self) -> Coefficients:
        """lambda by part, where it is above 0."""
        return coefficients_by_part(cast(Coefficient, self.l2_pretrained_coef))

    @property
    def adapter_coefficients(self) -> Coefficients:
        """beta by part, where it is above 0."""
        return coefficients_by_part(cast(Coefficient, self.l2_adapter_coef))

    @property
    def regularizes(self) -> bool:
        """Whether any coefficient is above 0."""
        return bool(self.pretrained_coefficients or self.adapter_coefficients)


def parse_coefficients(value: Any, name: str) -> Coefficient:
    """A coefficient, or coefficients by part, from a number, a mapping, or either as text.

    Raises:
        ConfigError: no number, a negative one, or a part that does not exist.
    """
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"`{name}` is no YAML: {value!r}; {FORM}.") from error
    if isinstance(value, Mapping):
        check_names(tuple(value), PARTS, name)
        return {part: _coefficient(each, f"{name}[{part}]") for part, each in value.items()}
    return 0.0 if value is None else _coefficient(value, name)


def _coefficient(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(f"`{name}` must be a number >= 0; got {value!r}; {FORM}.")
    return number


def find_terms(module: Any, args: RegularizationConfig) -> Terms:
    """What the coefficients of `args` hold in a module with a `backbone`.

    Raises:
        ConfigError: a coefficient that nothing answers to, or adapters without a closed form.
    """
    # Where a frozen copy is the reference policy, no second one is made. (An agent's is a method.)
    copy = getattr(module, "frozen_copy", None)
    copy = copy if isinstance(copy, Backbone) else None
    weights, lora = pretrained_terms(module.backbone, args.pretrained_coefficients, copy)
    adapters = adapter_terms(module.backbone, args.adapter_coefficients)
    check_found(
        "l2_pretrained_coef",
        cast(Coefficient, args.l2_pretrained_coef),
        {each.part for each in weights} | {each.part for each in lora},
        "pretrained weight and no LoRA layer trains. Name weights in `trainable`, train LoRA adapters "
        "(`use_peft: true`), or leave it out.",
    )
    check_found(
        "l2_adapter_coef",
        cast(Coefficient, args.l2_adapter_coef),
        {each.part for each in adapters},
        "adapter trains. Train some (`use_peft: true`), or leave it out.",
    )
    return Terms(weights, lora, adapters)


@dataclass(slots=True)
class _Group:
    """Weights that share a coefficient and the number of processes that hold the same elements of them."""

    coefficient: float
    replicas: int
    weights: list[nn.Parameter] = field(default_factory=list)
    starts: list[Tensor | float] = field(default_factory=list)


class Regularizer:
    """Holds the starting values, adds the gradients, and measures.

    Args:
        terms: what is held; see `find_terms`. Starting values that are not known are copied from the weights
            as they are now: before a checkpoint is loaded into them, and after they are sharded.
        args: the coefficients, and the device of the copy.
        num_processes: among which weights are sharded.
        reduce: sums over these processes.

    Attributes:
        num_copied: elements of which a copy is kept.
    """

    def __init__(
        self, terms: Terms, args: RegularizationConfig, *, num_processes: int = 1, reduce: Reduce = identity
    ) -> None:
        self.num_copied = 0
        self._num_processes, self._reduce = num_processes, reduce
        device = torch.device("cpu") if args.l2_pretrained_device == "cpu" else None
        self._pretrained = self._groups(terms.pretrained, args.pretrained_coefficients, device)
        self._lora = [(args.pretrained_coefficients[each.part], each) for each in terms.lora]
        self._adapters = self._groups(terms.adapters, args.adapter_coefficients, None)
        self._device = args.device

    def _groups(
        self, held: list[Held], coefficients: Coefficients, device: torch.device | None
    ) -> list[_Group]:
        groups: dict[tuple[float, int], _Group] = {}
        for each in held:
            key = coefficients[each.part], self._replicas(each.weight)
            group = groups.setdefault(key, _Group(*key))
            group.weights.append(each.weight)
            group.starts.append(self._start(each, device))
        return list(groups.values())

    @torch.no_grad()
    def _start(self, held: Held, device: torch.device | None) -> Tensor | float:
        weight, known = _local(held.weight), held.start
        if isinstance(known, float):
            return known
        device = weight.device if device is None else device
        if known is not None and (known.shape, known.device) == (weight.shape, device):
            return known
        self.num_copied += weight.numel()
        copy = torch.empty_like(weight, device=device, pin_memory=device.type == "cpu" and weight.is_cuda)
        return copy.copy_(weight)

    def _replicas(self, weight: Tensor) -> int:
        if not isinstance(weight, DTensor):
            return self._num_processes
        mesh, placements = weight.device_mesh, weight.placements
        return math.prod(mesh.size(axis) for axis, each in enumerate(placements) if each.is_replicate())

    @torch.no_grad()
    def add_gradients(self, scale: float = 1.0) -> dict[str, float]:
        """Adds the gradients, times `scale`, to `.grad`; collective where weights are sharded.

        Returns:
            Their values, and the distance to the pretrained weights, by the names they are logged under.
        """
        pretrained = [self._add_group(group, scale) for group in self._pretrained]
        pretrained += [self._add_lora(coefficient, layer, scale) for coefficient, layer in self._lora]
        adapters = [self._add_group(group, scale) for group in self._adapters]
        sums = torch.stack([_total(pretrained, self._device), _total(adapters, self._device)])
        (l2_pretrained, squares), (l2_adapter, _) = self._reduce(sums).tolist()
        values: dict[str, float] = {}
        if pretrained:
            values |= {"l2_pretrained": l2_pretrained, "distance": math.sqrt(squares)}
        if adapters:
            values |= {"l2_adapter": l2_adapter}
        return {f"regularization/{name}": value for name, value in values.items()}

    def _add_group(self, group: _Group, scale: float) -> Tensor:
        """(2,) this process's share of the weighted and of the plain sum of squares."""
        gradients = [_local(_gradient(weight)) for weight in group.weights]
        weights = [_local(weight) for weight in group.weights]
        squares = add_distance_gradient_(gradients, weights, group.starts, scale * group.coefficient)
        return torch.stack([group.coefficient * squares, squares]) / group.replicas

    def _add_lora(self, coefficient: float, layer: HeldLora, scale: float) -> Tensor:
        """(2,) as `_add_group`; A and B are small, so every process takes them whole."""
        down, up = (_whole(weight).flatten(1) for weight in (layer.down, layer.up))
        for weight, gradient in zip(
            (layer.down, layer.up), lora_gradients(down, up, layer.scaling), strict=True
        ):
            if weight.requires_grad:
                own = _sharded_like(gradient.view(weight.shape), weight)
                _local(_gradient(weight)).add_(own, alpha=scale * coefficient)
        squares = lora_squared_norm(down, up, layer.scaling)
        return torch.stack([coefficient * squares, squares]) / self._num_processes


def _total(sums: list[Tensor], device: torch.device) -> Tensor:
    return sum((each.to(device) for each in sums), torch.zeros(2, device=device))


def _gradient(weight: nn.Parameter) -> Tensor:
    if weight.grad is None:  # the loss did not reach it
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _local(tensor: Tensor) -> Tensor:
    """The elements that this process holds."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """This process's elements of a tensor that every process holds whole."""
    if not isinstance(weight, DTensor):
        return tensor
    sharded = distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)
    return sharded.to_local()
