"""What every trainer here needs around its loss: processes, logs, checkpoints, and a guard on every step.

Losses are sums over the rows or tokens of the whole optimizer step, divided by their number: micro-batches
and processes add up.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmft.errors import ConfigError, NonFiniteError
from mmft.trainers.callbacks import RunFiles
from mmft.trainers.metric_log import MetricLog


class BaseTrainer(Trainer):
    """A `transformers.Trainer` of a module that encodes prompts itself, and saves and restores itself.

    Attributes:
        module: the module; it has `within_forward`, `save_pretrained` and `load_checkpoint`.
        metric_log: what is measured between two log lines.
    """

    def __init__(
        self, module: Any, *, args: TrainingArguments, callbacks: list[TrainerCallback] | None, **options: Any
    ) -> None:
        self.module = module
        self.metric_log = MetricLog()
        super().__init__(model=module, args=args, callbacks=[RunFiles(), *(callbacks or [])], **options)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"One process sees {self.args.n_gpu} GPUs, and `DataParallel` cannot split shared prompts. "
                "Start one process per GPU (`accelerate launch`), or set CUDA_VISIBLE_DEVICES to one of them."
            )
        self.loss_is_scaled_for_ga = True

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        register_fsdp_forward_method(self.module, "within_forward")  # nothing happens without FSDP2
        return prepared

    def _checked_loss(self, loss: Tensor, rows: list[int], remedy: str) -> Tensor:
        """The loss to differentiate: gradients are averaged over processes, while the loss is a sum over the
        global batch, hence the factor.

        Raises:
            NonFiniteError: before anything is updated.
        """
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"step {self.state.global_step}: the loss is {loss.item()} on rows {rows}. Nothing was "
                f"updated; lower `learning_rate` or look at {remedy}."
            )
        return loss * self.accelerator.num_processes

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called before every optimizer step, also where `max_grad_norm` clips nothing."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # The loss scaler of fp16 makes gradients overflow by design, and skips those steps itself.
        if self.accelerator.scaler is None and not math.isfinite(float(grad_norm or 0.0)):
            raise NonFiniteError(
                f"step {self.state.global_step}: the gradient norm is {float(grad_norm)}. Nothing was "
                "updated; lower `learning_rate`, or train in a wider dtype."
            )
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds everything measured since the last log line to training logs; collective."""
        if "loss" in logs:
            logs = logs | self.metric_log.flush()
        super().log(logs, start_time)

    @property
    def _is_sharded(self) -> bool:
        stage = getattr(getattr(self.accelerator.state, "deepspeed_plugin", None), "zero_stage", 0)
        return bool(self.is_fsdp_enabled or stage == 3)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _anyone(self, flag: bool) -> bool:
        total = self._sum_over_processes(torch.tensor(float(flag), device=self.args.device))
        return bool(total > 0)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            self.module.save_pretrained(output_dir or cast(str, self.args.output_dir), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.module.load_checkpoint(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.module.load_checkpoint(cast(str, self.state.best_model_checkpoint))
