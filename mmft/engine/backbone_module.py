"""What modules around a backbone share: what the Trainer asks of a model, and how the backbone is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from transformers import AutoProcessor

from mmft.engine.actor_critic import VLMActorCritic
from mmft.errors import ConfigError, UnsupportedModelError
from mmft.models.adapters import load_adapter
from mmft.models.backbone import Backbone, load_backbone

Result = TypeVar("Result")
SavedPart = Literal["frozen", "adapter", "full"]


class BackboneModule(nn.Module):
    """A backbone that reads, below whatever judges or acts.

    Attributes:
        backbone: what of it trains (nothing, adapters, parts) was decided when it was made.
        trains_backbone: whether anything in it trains.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.trains_backbone = any(p.requires_grad for p in backbone.model.parameters())
        # Knows how a backbone is saved and what the Trainer asks of it; in a list so that it is no submodule.
        self._policy = [VLMActorCritic(backbone, critic=False, reference=False)]

    @property
    def saved_part(self) -> SavedPart:
        """What of the backbone is saved with the module."""
        if self.backbone.has_adapters:
            return "adapter"
        # Weights without a name exist nowhere else, whether they train or not.
        named = self.backbone.source is not None
        return "frozen" if named and not self.trains_backbone else "full"

    def train(self, mode: bool = True) -> Any:
        """As in torch; a backbone that does not train stays in evaluation mode, its features are constant."""
        if self.trains_backbone:
            return super().train(mode)
        # The Trainer asks at every step, and a frozen model has hundreds of modules to visit.
        self.training = mode
        for child in self.children():
            if child is not self.backbone:
                child.train(mode)
            elif child.training:
                child.eval()
        return self

    @property
    def config(self) -> Any:
        return self._policy[0].config

    @property
    def _no_split_modules(self) -> list[str]:
        return self._policy[0]._no_split_modules

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What the Trainer of older transformers calls."""
        self._policy[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Called where layers are to be recomputed in the backward."""
        self._policy[0].activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def within_forward(self, work: Callable[[], Result]) -> Result:
        """Runs `work` as if it were this module's forward: only there sharded weights are whole."""
        return work()

    def save_backbone(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the processor, and what `saved_part` says of the model.

        `state_dict` is the gathered state of the whole module, where its own tensors are sharded."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.saved_part == "frozen":
            self.backbone.processor.save_pretrained(folder)
        else:
            self._policy[0].save_pretrained(folder, state_dict)

    def load_backbone(self, folder: Path) -> None:
        """Restores what `save_backbone` wrote, bit by bit, into this module in place."""
        if self.saved_part != "frozen":
            self._policy[0].load_checkpoint(folder)


def load_saved_backbone(
    folder: Path, saved: SavedPart, name: str | None, dtype: str, *, what: str, **kwargs: Any
) -> Backbone:
    """The backbone of a saved module; nothing in it trains.

    Args:
        folder: of the module.
        saved: what of the backbone it holds.
        name: of the pretrained model, where the folder does not hold all of it.
        dtype: of the weights.
        what: the module is, for the error.
        **kwargs: for `load_backbone`.

    Raises:
        ConfigError: the pretrained model has no name, or is not where it was.
    """
    source = str(folder) if saved == "full" else name
    if source is None:
        raise ConfigError(
            f"the {what} {str(folder)!r} is an adapter on a model without a name. Name the model that was "
            "adapted (`base=`)."
        )
    if _has_processor(folder):
        kwargs.setdefault("processor", AutoProcessor.from_pretrained(folder))
    backbone = load_named(source, what=f"of the {what} {str(folder)!r}", **{"dtype": dtype} | kwargs)
    if saved == "adapter":
        backbone = Backbone(load_adapter(backbone.base, folder), backbone.processor, source)
    return backbone


def load_named(name: str, *, what: str, **kwargs: Any) -> Backbone:
    """A pretrained model on which something saved rests; nothing in it trains.

    Args:
        name: of the model.
        what: rests on it, for the error.
        **kwargs: for `load_backbone`.

    Raises:
        ConfigError: there is no such model.
    """
    try:
        return load_backbone(name, trainable=(), **kwargs)
    except (ConfigError, UnsupportedModelError):
        raise
    except (OSError, ValueError, ImportError) as error:  # what transformers raises
        raise ConfigError(
            f"the pretrained model {name!r} {what} cannot be loaded: {' '.join(str(error).split())} Name "
            "where it is now (`base=`, `--base-model`)."
        ) from error


def _has_processor(folder: Path) -> bool:
    names = ("processor_config.json", "preprocessor_config.json")
    return any((folder / name).is_file() for name in names)
