"""A bottleneck adapter on hidden states, as a PEFT method of its own.

    f_adapter(H; phi) = H + W_up act(W_down H + b_down) + b_up

(Houlsby et al. 2019, arXiv:1902.00751, section 2.1; behind a layer's MLP alone as in Pfeiffer et al. 2021,
arXiv:2005.00247). phi = {W_down, b_down, W_up, b_up}; W_up and b_up are zero at the start, so that the model
is unchanged. PEFT ships no adapter of this kind. Registered with PEFT, it is made, switched off, saved and
loaded as any other: `get_peft_model`, `disable_adapter()`, `save_pretrained`, `PeftModel.from_pretrained`.

Importing this module registers the method. mmft does so wherever it makes or loads adapters; plain PEFT reads
a saved one after `import mmft.models.bottleneck`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmft.errors import ConfigError
from mmft.models.adapter_settings import BOTTLENECK
from mmft.models.targets import hidden_state_modules, hidden_width, name_pattern

NO_MERGE = (
    "bottleneck adapters cannot be merged into the weights: a matrix has no place for their activation. Keep "
    "the adapter beside its base model, or train `peft_method: lora`, which merges."
)


def _add_peft_type(name: str) -> PeftType:
    """The member of PEFT's enumeration of methods by that name, added if it is missing.

    `register_peft_method` takes only names of this enumeration, which PEFT and transformers read by `.value`
    too, and which has no public way to grow."""
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    kind: Any = PeftType
    kind._member_map_[name] = kind._value2member_map_[name] = member
    kind._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    found: PeftType = member
    return found


BOTTLENECK_TYPE = _add_peft_type(BOTTLENECK.upper())


@dataclass
class BottleneckConfig(PeftConfig):
    """Settings of bottleneck adapters; saved as adapter_config.json.

    Attributes:
        target_modules: modules whose outputs, hidden states (..., D), are adapted: a regular expression, or
            names as PEFT matches them. Unset: the MLP of every layer of the text model.
        exclude_modules: modules to leave out of them.
        bottleneck_size: width of the bottleneck, the rows of W_down.
        activation: by transformers' name: gelu, relu, silu, ...
        bottleneck_dropout: on what enters W_down.
        modules_to_save: other modules that train and are saved.
        init_weights: False draws W_up and b_up too, so that the adapter says something from the start.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    bottleneck_size: int = 64
    activation: str = "gelu"
    bottleneck_dropout: float = 0.0
    modules_to_save: list[str] | None = None
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK_TYPE
        if self.bottleneck_size < 1:
            raise ConfigError(f"`bottleneck_size` must be >= 1; got {self.bottleneck_size}.")
        if self.activation not in ACT2FN:
            raise ConfigError(
                f"`activation` {self.activation!r} is none of transformers'; take gelu, relu, silu or tanh."
            )
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as PEFT's own do


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module with adapters on what it returns; a tuple's first member is taken for the hidden states.

    Everything else that the model reads from the wrapped module (`attention_type`, `weight`, ...) is its own.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._width = width
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not there yet
                raise
            return getattr(self.base_layer, name)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Adds the adapter's weights, in fp32, and makes it the active one."""
        down = nn.Linear(self._width, config.bottleneck_size, dtype=torch.float32)
        up = nn.Linear(config.bottleneck_size, self._width, dtype=torch.float32)
        if config.init_weights:
            nn.init.zeros_(down.bias)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.bottleneck_dropout)
        self.bottleneck_activation[adapter_name] = ACT2FN[config.activation]
        base = next(self.base_layer.parameters(), None)
        self._move_adapter_to_device_of_base_layer(adapter_name, base.device if base is not None else None)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapt(self, hidden: Tensor, adapter_name: str) -> Tensor:
        """f_adapter(H; phi) of (..., D) hidden states: summed in the adapter's precision, returned in H's.

        Raises:
            ConfigError: the hidden states are not D wide.
        """
        if hidden.shape[-1] != self._width:
            raise ConfigError(
                f"a bottleneck adapter is {self._width} wide, but its module returns hidden states of width "
                f"{hidden.shape[-1]}; name modules in `target_modules` that return the text model's."
            )
        down: Any = self.bottleneck_down[adapter_name]
        up = self.bottleneck_up[adapter_name]
        wide = self._cast_input_dtype(hidden, down.weight.dtype)
        inner = self.bottleneck_activation[adapter_name](down(self.bottleneck_dropout[adapter_name](wide)))
        adapted: Tensor = wide + up(inner)
        return adapted.to(hidden.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns, its hidden states adapted."""
        output = self.base_layer(*args, **kwargs)
        active = [] if self.disable_adapters else [a for a in self.active_adapters if a in self.bottleneck_up]
        for adapter_name in active:
            if isinstance(output, tuple):
                output = (self.adapt(output[0], adapter_name), *output[1:])
            else:
                output = self.adapt(output, adapter_name)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(NO_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class BottleneckModel(BaseTuner):
    """What PEFT calls to put bottleneck adapters into a model."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        config: Any = peft_config
        if config.target_modules is None:
            modules = hidden_state_modules(self.model, "language")
            if not modules:
                raise ConfigError(
                    "`target_modules` is unset, and the text model's layers have no MLP of a known name; "
                    "name the modules whose outputs are to be adapted."
                )
            config.target_modules = name_pattern(self.model, modules)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config: Any = peft_config
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, config)
            return
        for outer in _ancestors(current_key):
            if isinstance(self.model.get_submodule(outer), BottleneckLayer):
                raise ConfigError(
                    f"`target_modules` {config.target_modules!r} names {current_key} and {outer} around it; "
                    "name either."
                )
        layer = BottleneckLayer(target, hidden_width(self.model, target))
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, config)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own hands a `weight` on, which an MLP has not; layers find their device by themselves.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> NoReturn:
        raise ConfigError(NO_MERGE)


def _ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts)))


register_peft_method(name=BOTTLENECK, config_cls=BottleneckConfig, model_cls=BottleneckModel)
