"""Adapters by name: which PEFT config trains which parts of a model, and how a saved adapter is read.

PEFT does the rest; prompt learning and other methods of PEFT go in by their own configs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from mmft.errors import ConfigError
from mmft.models.adapter_settings import ADAPTABLE, BOTTLENECK, DEFAULT_PARTS, METHODS, check_names
from mmft.models.adapter_settings import ADAPTER_FILE as ADAPTER_FILE
from mmft.models.adapter_settings import PRETRAINED_FILE as PRETRAINED_FILE
from mmft.models.freezing import trained_pretrained_weights
from mmft.models.targets import (
    hidden_state_modules,
    inner_activation_layers,
    keys_and_values,
    last_norm,
    linear_layers,
    name_pattern,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

PRETRAINED_PREFIX = "backbone.model."
"""Of their names, before those of the `PeftModel`."""
LAST_HIDDEN_STATE = "norm"
"""Short name, in `target_modules` of bottleneck adapters, of the text model's final norm."""
NO_PARTS_SETTING = "Name modules instead (`target_modules`; `lora_target_modules` in a config)."


def adapter_config(
    model: PreTrainedModel,
    *,
    method: str = "lora",
    parts: Sequence[str] = DEFAULT_PARTS,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    bottleneck_size: int = 64,
    target_modules: Sequence[str] | str | None = None,
    target_parameters: Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    task_type: str | None = None,
) -> PeftConfig:
    """The PEFT config of a method on parts of this model.

    - `lora` (Hu et al. 2021, arXiv:2106.09685), `dora` (Liu et al. 2024, arXiv:2402.09353), `rslora` (scale
      alpha / sqrt(r), Kalajdzievski 2023, arXiv:2312.03732): every linear layer of the parts.
    - `ia3` (Liu et al. 2022, arXiv:2205.05638, eq. 1): the keys, the values and the MLPs' inner activations.
    - `bottleneck` (`models.bottleneck`): the hidden states that each layer's MLP, or the projector, returns.

    Adapters on `language` alone leave the pictures' encodings as they are, which are then computed once and
    kept; the others make them part of what trains.

    Args:
        model: without adapters so far.
        method: one of the above.
        parts: among `language` (the text model without its head), `vision`, `projector`.
        r: rank, of the LoRA kinds.
        alpha: scale, of the LoRA kinds: what is added is multiplied by alpha / r.
        dropout: on what enters an adapter; IA3 has none.
        bottleneck_size: width of bottleneck adapters.
        target_modules: modules by PEFT's rules instead of parts; `norm` gives a bottleneck adapter on the
            text model's last hidden state.
        target_parameters: of LoRA kinds, weights that are no module's, such as fused experts.
        modules_to_save: modules that train whole and are saved beside the adapter.
        use_dora: as `method="dora"`, to combine it with `rslora`.
        use_rslora: as `method="rslora"`, to combine it with `dora`.
        task_type: PEFT's.

    Raises:
        ConfigError: an unknown method or part, a part without layers for it, or modules or
            parameters that match nothing.
    """
    check_names([method], METHODS, "method")
    check_names(parts, ADAPTABLE, "parts")
    if target_modules is not None:
        targets = _given(model, method, target_modules)
    elif target_parameters is None:
        targets = name_pattern(model, [name for part in parts for name in _names(model, method, part)])
    else:
        targets = None
    _check_parameters(model, target_parameters or ())
    common: dict[str, Any] = {
        "target_modules": targets,
        "modules_to_save": None if modules_to_save is None else list(modules_to_save),
        "task_type": task_type,
    }
    if method == BOTTLENECK:
        from mmft.models.bottleneck import BottleneckConfig

        return BottleneckConfig(bottleneck_size=bottleneck_size, bottleneck_dropout=dropout, **common)
    from peft import IA3Config, LoraConfig

    if method == "ia3":
        return IA3Config(feedforward_modules=_feedforward(model), **common)
    if target_parameters is not None:
        common["target_parameters"] = list(target_parameters)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        use_dora=use_dora or method == "dora",
        use_rslora=use_rslora or method == "rslora",
        **common,
    )


def _names(model: PreTrainedModel, method: str, part: str) -> list[str]:
    """The modules of a part that a method adapts, never none."""
    if method == BOTTLENECK:
        found, wanted = hidden_state_modules(model, part), "layers with an MLP of a known name"
    elif method == "ia3":
        found = sorted({*keys_and_values(model, part), *inner_activation_layers(model, part)})
        wanted = "linear layers for keys, values or MLPs"
    else:
        found, wanted = linear_layers(model, part), "linear layers"
    if not found:
        raise ConfigError(
            f"`{part}` of {type(model).__name__} has no {wanted} for {method!r} to adapt. {NO_PARTS_SETTING}"
        )
    return found


def _given(model: PreTrainedModel, method: str, target_modules: Sequence[str] | str) -> list[str] | str:
    """The user's own choice, checked: it must match something."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    if method == BOTTLENECK and targets in (LAST_HIDDEN_STATE, [LAST_HIDDEN_STATE]):
        return name_pattern(model, [last_norm(model)])
    if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return targets
    rules = LoraConfig(target_modules=targets)
    if not any(check_target_module_exists(rules, name) for name, _ in model.named_modules()):
        examples = linear_layers(model, "language") or [name for name, _ in model.named_modules() if name]
        raise ConfigError(
            f"`target_modules` {targets!r} (`lora_target_modules` in a config) matches no module of "
            f"{type(model).__name__}; its modules have names like {examples[0]!r}."
        )
    return targets


def _check_parameters(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Refuses a name that is no parameter's, in full or from a dot on, as PEFT compares them."""
    known = [name for name, _ in model.named_parameters()]
    for name in names:
        if not any(f".{each}".endswith(f".{name}") for each in known):
            raise ConfigError(
                f"`target_parameters` names {name!r} (`lora_target_parameters` in a config), which is no "
                f"parameter of {type(model).__name__}; its parameters have names like {known[0]!r}."
            )


def _feedforward(model: PreTrainedModel) -> str | list[str]:
    """Layers whose input IA3 rescales, not their output, of every part: PEFT asks about targets only."""
    names = [name for part in ADAPTABLE for name in inner_activation_layers(model, part)]
    return name_pattern(model, names) if names else []


def method_of(folder: str | os.PathLike[str]) -> str:
    """The PEFT method of a saved adapter, in lower case."""
    settings = json.loads((Path(folder) / ADAPTER_FILE).read_text(encoding="utf-8"))
    return str(settings.get("peft_type", "")).lower()


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], **options: Any) -> PeftModel:
    """PEFT's `PeftModel.from_pretrained`, which knows mmft's own methods too.

    Pretrained weights that were trained beside the adapter and saved with it are put back into the model.

    Raises:
        ConfigError: the model has no such weights.

    Example:
        >>> from peft import LoraConfig
        >>> from mmft import PPOConfig, PPOTrainer
        >>> from mmft.tiny import load_scenes
        >>> from rewards import bleu_reward
        >>> rows = load_scenes("train", 8).add_column("prompt", ["Describe the picture."] * 8)
        >>> args = PPOConfig(output_dir="runs/example", max_steps=1)
        >>> lora = LoraConfig(r=4, target_modules=r".*language_model.*_proj")
        >>> trainer = PPOTrainer("mmft/tiny-captioner", bleu_reward, args, rows, peft_config=lora)
        >>> _ = trainer.train()
        >>> trainer.save_model()
        >>> from transformers import AutoModelForImageTextToText
        >>> from mmft.models.adapters import load_adapter
        >>> from mmft.tiny import captioner_path
        >>> base = AutoModelForImageTextToText.from_pretrained(captioner_path())
        >>> load_adapter(base, "runs/example").active_adapters
        ['default']
    """
    from peft import PeftModel

    import mmft.models.bottleneck  # noqa: F401  # registers it

    loaded: Any = PeftModel
    found: PeftModel = loaded.from_pretrained(model, str(folder), **options)
    _load_beside(found, Path(folder) / PRETRAINED_FILE)
    return found


def save_beside(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Writes the pretrained weights that train beside a `PeftModel`'s adapters, if any do."""
    trained = {id(parameter) for parameter in trained_pretrained_weights(model).values()}
    found = {
        PRETRAINED_PREFIX + name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if id(parameter) in trained
    }
    if found:
        save_file(found, Path(folder) / PRETRAINED_FILE)


@torch.no_grad()
def _load_beside(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        return
    parameters = dict(model.named_parameters())
    for name, tensor in load_file(path).items():
        parameter = parameters.get(name.removeprefix(PRETRAINED_PREFIX))
        if parameter is None or parameter.shape != tensor.shape:
            raise ConfigError(
                f"{path} holds {name.removeprefix(PRETRAINED_PREFIX)!r} {tuple(tensor.shape)}, which this "
                "model does not have. Load the adapter on the model that it was trained on."
            )
        parameter.copy_(tensor)


def can_merge(model: nn.Module) -> bool:
    """Whether the adapters of this model can become part of its weights."""
    configs = getattr(model, "peft_config", {}).values()
    return all(str(config.peft_type.value).lower() != BOTTLENECK for config in configs)
