"""Where adapters can go: the linear layers and the hidden states of each part of a model, by module name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mmft.errors import ConfigError
from mmft.models.freezing import parameter_parts
from mmft.models.seam import find_text_model

MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe", "moe")
KEYS_AND_VALUES = frozenset({
    "k_proj", "v_proj", "kv_proj", "qkv_proj", "key", "value", "qkv", "key_value", "query_key_value",
})  # fmt: skip


def linear_layers(model: PreTrainedModel, part: str) -> list[str]:
    """Names of the linear layers of `language` (the text model without its head), `vision` or `projector`."""
    return [name for name, module in _modules_of(model, part) if isinstance(module, nn.Linear)]


def hidden_state_modules(model: PreTrainedModel, part: str) -> list[str]:
    """Names of the modules that return a part's hidden states: each layer's MLP; the projector as a whole."""
    # A list of modules is never called, its members are.
    modules = [name for name, module in _modules_of(model, part) if not isinstance(module, nn.ModuleList)]
    if part == "projector":
        return _outermost(modules)
    layer_mlp = re.compile(rf".*\.\d+\.({'|'.join(MLP_NAMES)})")
    return [name for name in modules if layer_mlp.fullmatch(name)]


def inner_activation_layers(model: PreTrainedModel, part: str) -> list[str]:
    """Names of the linear layers that take an MLP's inner activations back to hidden states.

    They are the last ones of their MLP, or of one expert of it; a router comes first or is not as wide."""
    found = []
    modules = dict(model.named_modules())
    linear = linear_layers(model, part)
    for outer in hidden_state_modules(model, part):
        inside = [name for name in linear if name.startswith(f"{outer}.")]
        groups = itertools.groupby(inside, key=lambda name: name.rpartition(".")[0])
        last = [list(names)[-1] for _, names in groups]
        width = hidden_width(model, modules[outer])
        found += [name for name in last if getattr(modules[name], "out_features", None) == width]
    return found


def keys_and_values(model: PreTrainedModel, part: str) -> list[str]:
    """Names of the linear layers that project to attention's keys and values (and queries, where fused)."""
    return [name for name in linear_layers(model, part) if name.rpartition(".")[2] in KEYS_AND_VALUES]


def last_norm(model: PreTrainedModel) -> str:
    """Name of the text model's final norm, which returns its last hidden states.

    Raises:
        ConfigError: it has no `norm`.
    """
    norm = getattr(find_text_model(model), "norm", None)
    for name, module in model.named_modules():
        if module is norm:
            return name
    raise ConfigError(
        f"the text model of {type(model).__name__} has no module `norm`; name the module that returns its "
        "last hidden states in `target_modules`."
    )


def hidden_width(model: nn.Module, module: nn.Module) -> int:
    """D, the width of the hidden states that a module returns.

    Inside the text model its config knows. Elsewhere the last linear layer does, or a norm's weight; a
    projector without either speaks in the text model's width. A wrong guess is found in the first forward."""
    text_model: Any = find_text_model(model)
    if any(each is module for each in text_model.modules()):
        return int(text_model.config.hidden_size)
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if linear:
        return linear[-1].out_features
    weight = getattr(module, "weight", None)
    return int(weight.shape[-1] if weight is not None else text_model.config.hidden_size)


def name_pattern(model: nn.Module, names: Sequence[str]) -> str:
    """A regular expression that matches these of the model's modules and no others.

    Numbers in it become `\\d+` where nothing else is matched by it.

    Raises:
        ValueError: no names.
    """
    if not names:
        raise ValueError("`names` is empty; there is nothing to match")
    wanted, everything = set(names), [name for name, _ in model.named_modules()]
    exact = {name: re.escape(name) for name in wanted}
    general = {name: re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", exact[name]) for name in wanted}
    too_wide = {
        pattern
        for pattern in set(general.values())
        if any(re.fullmatch(pattern, name) for name in everything if name not in wanted)
    }
    return _alternatives({exact[name] if general[name] in too_wide else general[name] for name in wanted})


def _alternatives(patterns: set[str]) -> str:
    ordered = sorted(patterns)
    if len(ordered) == 1:
        return ordered[0]
    split = [each.split(r"\.") for each in ordered]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*split, strict=False))
    start = "".join(rf"{column[0]}\." for column in same)
    return f"{start}({'|'.join(each.removeprefix(start) for each in ordered)})"


def _modules_of(model: PreTrainedModel, part: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules all of whose weights belong to the part."""
    parts = {id(parameter): found for found, _, parameter in parameter_parts(model)}
    for name, module in model.named_modules():
        if {parts[id(parameter)] for parameter in module.parameters()} == {part}:
            yield name, module


def _outermost(names: Sequence[str]) -> list[str]:
    """Those that lie in no other."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
