"""When training looks at what its answers or decisions hang on, and how; `trainers.modality_use` does it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmft.errors import ConfigError
from mmft.models.adapter_settings import check_names

METHODS = ("relative", "gradient", "gradient_x_input")
"""Of `engine.attribution`."""

STEPS_HELP = (
    "Optimizer steps between two looks at what answers or decisions hang on: shares of image and text in the "
    "gradient at the text model's inputs, logged as `importance/image_share` and `importance/text_share`; 0 "
    "is off. A look goes through the whole model and back; where a step trains heads on a frozen backbone "
    "alone, it takes as long as a few steps."
)


@dataclass
class ImportanceSettings:
    """Settings that trainers of policies and of agents have in common."""

    importance_steps: int = field(default=50, metadata={"help": STEPS_HELP})
    importance_method: str = field(
        default="relative",
        metadata={
            "help": "Of these shares: `relative` (||dL/dE|| ||E||, by which embeddings of different scale "
            "compare), `gradient` (||dL/dE||) or `gradient_x_input` (|<dL/dE, E>|)."
        },
    )

    def check_importance(self) -> None:
        """Refuses what is no number of steps and no method.

        Raises:
            ConfigError: names the field, its value and the remedy.
        """
        check_names([self.importance_method], METHODS, "importance_method")
        if self.importance_steps < 0:
            raise ConfigError(f"`importance_steps` must be >= 0; got {self.importance_steps}. 0 is off.")
