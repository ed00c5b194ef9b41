"""What a regulariser holds, and where: pretrained weights, LoRA layers, the weights of adapters.

Parts are those of `models.freezing`. Heads that training adds (a critic, a reward head) have no pretrained
value and are in none of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from mmft.errors import ConfigError
from mmft.models.backbone import Backbone
from mmft.models.freezing import PARTS, parameter_parts, trained_pretrained_weights

Coefficients = Mapping[str, float]
"""Coefficients above 0 by part."""

MOVING_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations of LoRA that move the pretrained weight, so that B A is no distance to it."""
NEUTRAL = {"ia3_": 1.0}
"""Where adapters change nothing, by the prefix of their names; 0 unless named."""
STARTING = ("lora_magnitude_vector", "ln_tuning_", "trainable_tokens_")
"""Adapters made of values of the pretrained weights: they are counted from where they start."""


@dataclass(frozen=True, slots=True)
class Held:
    """A weight that is drawn towards a value."""

    part: str
    weight: nn.Parameter
    start: Tensor | float | None
    """The value; None: what the weight is now, of which a copy has to be made."""


@dataclass(frozen=True, slots=True)
class HeldLora:
    """A LoRA layer whose change of the pretrained weight, s B A, is drawn towards nothing."""

    part: str
    down: nn.Parameter
    up: nn.Parameter
    scaling: float


@dataclass(frozen=True, slots=True)
class Terms:
    """Everything that is held: by lambda (`pretrained`, `lora`) and by beta (`adapters`)."""

    pretrained: list[Held]
    lora: list[HeldLora]
    adapters: list[Held]


def pretrained_terms(
    backbone: Backbone, coefficients: Coefficients, frozen_copy: Backbone | None = None
) -> tuple[list[Held], list[HeldLora]]:
    """The pretrained weights that train in the named parts, and the LoRA layers there.

    Args:
        backbone: the model that trains.
        coefficients: of the parts that are held.
        frozen_copy: the same model before training, if one is kept.

    Raises:
        ConfigError: adapters whose distance to the pretrained weights has no closed form.
    """
    if not coefficients:
        return [], []
    parts = parts_of(backbone)
    copies = dict(frozen_copy.base.named_parameters()) if frozen_copy is not None else {}
    weights = [
        Held(parts[id(weight)], weight, copies.get(name))
        for name, weight in trained_pretrained_weights(backbone.model).items()
    ]
    weights += [Held(parts[id(copy)], copy, start) for copy, start in saved_modules(backbone)]
    lora = [
        HeldLora(parts[id(down)], down, up, scaling)
        for layer in lora_layers(backbone)
        for down, up, scaling in _trained_pairs(layer, backbone)
        if parts[id(down)] in coefficients
    ]
    covered = {id(each.weight) for each in weights} | {id(w) for each in lora for w in (each.down, each.up)}
    for name, weight in backbone.model.named_parameters():
        part = parts.get(id(weight), "language")
        if weight.requires_grad and id(weight) not in covered and part in coefficients:
            raise ConfigError(
                f"`l2_pretrained_coef` holds the {part} part, where {name} trains: how far such an adapter "
                "moves the pretrained weights has no closed form, only plain LoRA and rsLoRA have one. Use "
                "`l2_adapter_coef`, or LoRA."
            )
    return [each for each in weights if each.part in coefficients], lora


def adapter_terms(backbone: Backbone, coefficients: Coefficients) -> list[Held]:
    """Every weight of an adapter that trains in the named parts, with the value at which it changes nothing.

    Modules that PEFT trains as a whole (`modules_to_save`) are pretrained weights and no adapters."""
    if not coefficients:
        return []
    parts = parts_of(backbone)
    pretrained = {id(weight) for weight in trained_pretrained_weights(backbone.model).values()}
    pretrained |= {id(copy) for copy, _ in saved_modules(backbone)}
    return [
        Held(parts.get(id(weight), "language"), weight, _neutral(name))
        for name, weight in backbone.model.named_parameters()
        if weight.requires_grad
        and id(weight) not in pretrained
        and parts.get(id(weight), "language") in coefficients
    ]


def parts_of(backbone: Backbone) -> dict[int, str]:
    """The part of each parameter by its identity; virtual tokens, outside the model, are missing."""
    return {id(parameter): part for part, _, parameter in parameter_parts(backbone.base)}


def _neutral(name: str) -> float | None:
    path = name.split(".")
    if any(each.startswith(STARTING) for each in path):
        return None
    return next((at for prefix, at in NEUTRAL.items() if any(p.startswith(prefix) for p in path)), 0.0)


def saved_modules(backbone: Backbone) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """(trained weight, pretrained weight) of the modules that PEFT copied to train them as a whole."""
    if not backbone.has_adapters:
        return
    from peft.utils import ModulesToSaveWrapper

    for module in backbone.base.modules():
        if isinstance(module, ModulesToSaveWrapper):
            pretrained = dict(module.original_module.named_parameters())
            for copy in module.modules_to_save.values():
                yield from ((w, pretrained[name]) for name, w in copy.named_parameters() if w.requires_grad)


def lora_layers(backbone: Backbone) -> Iterator[Any]:
    """The layers of the model that carry LoRA, whatever its kind."""
    if not backbone.has_adapters:
        return
    from peft.tuners.lora import LoraLayer

    yield from (module for module in backbone.base.modules() if isinstance(module, LoraLayer))


def _trained_pairs(layer: Any, backbone: Backbone) -> list[tuple[nn.Parameter, nn.Parameter, float]]:
    """(A, B, s) of the adapters of a layer that change its weight by s B A and train."""
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import ParamWrapper

    if isinstance(layer, AdaLoraLayer | ParamWrapper) or getattr(layer.get_base_layer(), "groups", 1) > 1:
        return []
    pairs = {name: (layer.lora_A[name].weight, layer.lora_B[name].weight) for name in layer.lora_A}
    pairs |= {n: (down, layer.lora_embedding_B[n]) for n, down in layer.lora_embedding_A.items()}
    trained = {
        name: pair
        for name, pair in pairs.items()
        if any(weight.requires_grad for weight in pair) and name not in layer.lora_variant
    }
    for name in trained:
        _check_pair(layer, name, len(trained), backbone)
    return [(down, up, float(layer.scaling[name])) for name, (down, up) in trained.items()]


def _check_pair(layer: Any, adapter: str, num_trained: int, backbone: Backbone) -> None:
    init = cast(Any, backbone.model).peft_config[adapter].init_lora_weights
    if layer.get_base_layer().weight.requires_grad or num_trained > 1:
        raise ConfigError(
            "`l2_pretrained_coef` holds a weight that trains both itself and through LoRA, or through two "
            "adapters; the distance of their sum is not implemented. Leave the weight out of `trainable` or "
            "out of the adapter, or set the coefficient of its part to 0."
        )
    if isinstance(init, str) and init.lower().startswith(MOVING_INITS):
        raise ConfigError(
            f"`l2_pretrained_coef` needs adapters that leave the pretrained weights in place, but "
            f"`init_lora_weights={init!r}` moves them. Choose another initialisation, or use "
            "`l2_adapter_coef`."
        )


def check_found(name: str, value: float | Mapping[str, float], found: set[str], what: str) -> None:
    """Refuses a coefficient of something that does not train.

    Args:
        name: of the setting.
        value: its value.
        found: the parts where something is held.
        what: would be held, and the remedy where there is none.

    Raises:
        ConfigError: with the part where nothing is held.
    """
    if isinstance(value, Mapping):
        for part, coefficient in value.items():
            covered = {part, "head"} if part == "language" else {part}
            if coefficient and not covered & found:
                raise ConfigError(f"`{name}` is {coefficient:g} for {part}, where no {what}")
    elif value and not found:
        raise ConfigError(f"`{name}` is {value:g}, but no {what}")


def coefficients_by_part(value: float | Mapping[str, float]) -> dict[str, float]:
    """Coefficients above 0 by part; the head goes with `language` unless it has one of its own."""
    given = value if isinstance(value, Mapping) else dict.fromkeys(PARTS, value)
    given = {"head": given.get("language", 0.0)} | dict(given)
    return {part: given[part] for part in PARTS if given.get(part)}
