"""What every trainer here needs around its loss: processes, logs, checkpoints, and a guard on every step.

Losses are sums over the rows or tokens of the whole optimizer step, divided by their number: micro-batches
and processes add up.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import Trainer, TrainerCallback

from mmft.errors import ConfigError, NonFiniteError
from mmft.hub import prepare_push, push_trained
from mmft.trainers.callbacks import RunFiles
from mmft.trainers.metric_log import MetricLog
from mmft.trainers.regularization import RegularizationConfig, Regularizer, find_terms
from mmft.trainers.tracked_samples import OneRun


class BaseTrainer(Trainer):
    """A `transformers.Trainer` of a module that encodes prompts itself, and saves and restores itself.

    Attributes:
        module: the module; it has `backbone`, `within_forward`, `save_pretrained` and `load_checkpoint`.
        metric_log: what is measured between two log lines.
        regularizer: what draws weights towards pretrained ones, where `args` ask for it.
    """

    args: RegularizationConfig

    def __init__(
        self,
        module: Any,
        *,
        args: RegularizationConfig,
        callbacks: list[TrainerCallback] | None,
        **options: Any,
    ) -> None:
        self.module = module
        self.regularizer: Regularizer | None = None
        self.metric_log = MetricLog()
        super().__init__(model=module, args=args, callbacks=[RunFiles(), *(callbacks or [])], **options)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"One process sees {self.args.n_gpu} GPUs, and `DataParallel` cannot split shared prompts. "
                "Start one process per GPU (`accelerate launch`), or set CUDA_VISIBLE_DEVICES to one of them."
            )
        OneRun.install(self)
        self.loss_is_scaled_for_ga = True
        self._check_regularization()

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        register_fsdp_forward_method(self.module, "within_forward")  # nothing happens without FSDP2
        self._hold_weights()
        return prepared

    # Regularisation

    def _check_regularization(self) -> None:
        """Refuses what cannot be regularised before anything is trained; holds the rest where it can."""
        if not self.args.regularizes:
            return
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if self.is_deepspeed_enabled or (plugin is not None and plugin.fsdp_version == 1):
            raise ConfigError(
                "`l2_pretrained_coef` and `l2_adapter_coef` are added to gradients, and DeepSpeed and FSDP 1 "
                "keep those in buffers of their own. Use DDP or FSDP 2 (`fsdp_version: 2`), or set both to 0."
            )
        if self.is_fsdp_enabled:
            find_terms(self.module, self.args)
        else:
            self._hold_weights()

    def _hold_weights(self) -> None:
        """Remembers the pretrained weights, once: before a checkpoint is loaded, after FSDP sharded them."""
        if self.regularizer is None and self.args.regularizes:
            sharded: dict[str, Any] = {}
            if self.is_fsdp_enabled:
                sharded = {
                    "num_processes": self.accelerator.num_processes,
                    "reduce": self._sum_over_processes,
                }
            self.regularizer = Regularizer(find_terms(self.module, self.args), self.args, **sharded)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; with the last micro-batch of a step, regularisers add their gradients."""
        start = perf_counter()
        loss = super().training_step(*args, **kwargs)
        if self.regularizer is not None and self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            with self.metric_log.timed("regularization"):
                values = self.regularizer.add_gradients(1.0 if scaler is None else scaler.get_scale())
            for name, value in values.items():
                self.metric_log.add(name, value)
        # A sum, so that what was done since the last log line divided by it is a speed.
        self.metric_log.count("seconds/training", (perf_counter() - start) / self.accelerator.num_processes)
        return loss

    # The hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Called by the Trainer where `push_to_hub` is set: makes the repository before any training."""
        if self.is_world_process_zero():
            cast(Any, self).hub_model_id = prepare_push(self.args, token=token, private=private)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers, but to save is not to push: that is done once, when a run is finished."""
        super().save_model(output_dir, _internal_call=True)

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves the model to `output_dir` and uploads what is shared of that folder; see `mmft.hub.push`.

        Collective. Keyword arguments are those of `push`.

        Returns:
            The `PushPlan` of what was sent, on the first process.

        Raises:
            ConfigError: it was to go on in the background.
            HubError: something may not be sent, or the hub refused or broke off.
        """
        if not blocking:
            raise ConfigError("`blocking=False`: a push is one commit, which is waited for. Leave it out.")
        self.save_model()
        if not self.is_world_process_zero():
            return None
        options = {"commit_message": commit_message, "token": token, "revision": revision, "private": private}
        return push_trained(self.args, self.hub_model_id, **options, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Called by the Trainer at each checkpoint: these are no finished runs."""

    # Guards

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
            self._hold_weights()
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.module.load_checkpoint(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.module.load_checkpoint(cast(str, self.state.best_model_checkpoint))
