"""From settings to objects: the rows, the rewards and the model of a run, the built-in ones by name."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from mmft.config import DataConfig, RunConfig
from mmft.data.rows import PromptDataset, load_split
from mmft.engine.saved_policy import BASE_FOLDER
from mmft.errors import ConfigError, DataError, UnsupportedModelError
from mmft.models.adapter_settings import BOTTLENECK, DEFAULT_PARTS
from mmft.models.adapters import adapter_config, load_adapter, method_of
from mmft.models.backbone import Backbone, load_backbone, make_backbone
from mmft.models.freezing import PARTS, parameter_parts
from mmft.tiny import (
    PREFERENCES_NAME,
    RATED_CAPTIONS_NAME,
    RATINGS_NAME,
    SCENES_NAME,
    load_preferences,
    load_rated_captions,
    load_ratings,
    load_scenes,
)
from mmft.trl_bridge import get_quantization_config

if TYPE_CHECKING:
    from peft import PeftConfig

DEFAULT_SCENES = 512
BUILT_IN = {
    SCENES_NAME: load_scenes,
    PREFERENCES_NAME: load_preferences,
    RATINGS_NAME: load_ratings,
    RATED_CAPTIONS_NAME: load_rated_captions,
}
"""Datasets that are drawn rather than stored, by their `dataset_name`."""


def load_rows(script: DataConfig, split: str, max_rows: int | None) -> Dataset:
    """One split as it is stored, columns renamed."""
    if script.dataset_name is None:
        raise ConfigError(
            "`dataset_name` is missing; give a hub id, a folder, a file, `imagefolder`, or `mmft/scenes`."
        )
    return load_split(
        script.dataset_name,
        split,
        data_dir=script.dataset_data_dir,
        data_files=script.dataset_data_files,
        config_name=script.dataset_config,
        max_rows=max_rows,
        rename_columns=script.rename_columns if isinstance(script.rename_columns, dict) else None,
        builtin={name: functools.partial(_drawn, name) for name in BUILT_IN},
    )


def _drawn(name: str, split: str, count: int | None) -> Dataset:
    try:
        return BUILT_IN[name](split, count or DEFAULT_SCENES)
    except ValueError as error:
        raise DataError(f"`dataset_name: {name}`: {error}") from error


def load_prompts(script: DataConfig, split: str, max_rows: int | None) -> PromptDataset:
    """One split as prompts."""
    rows = load_rows(script, split, max_rows)
    return PromptDataset(rows, name=split, instruction=script.instruction, system_prompt=script.system_prompt)


def train_prompts(script: DataConfig) -> PromptDataset:
    """The rows to train on."""
    return load_prompts(script, script.train_split, script.max_train_rows)


def held_out_prompts(script: DataConfig) -> PromptDataset | None:
    """The held-out rows, if the config names a split of them."""
    return (
        None if script.eval_split is None else load_prompts(script, script.eval_split, script.max_eval_rows)
    )


def load_policy(run: RunConfig, *, train: bool, keep_base: bool = False) -> Backbone:
    """The model of a run with its adapters and freeze rules; without `train` nothing in it trains.

    An adapter given by `adapter_path` becomes part of the weights before training, so that the reference
    policy contains it and the new adapter starts at zero. Without training it stays an adapter.

    Args:
        run: the settings.
        train: whether the policy will be trained.
        keep_base: write the model that new adapters belong to, where it exists nowhere else.

    Raises:
        ConfigError: training is to start from an adapter that cannot become part of the weights.
    """
    base, adapter = model_and_adapter(run)
    if adapter is not None and train and method_of(adapter) == BOTTLENECK:
        raise ConfigError(
            f"{adapter} holds bottleneck adapters, which cannot become part of the weights that new training "
            f"starts from. Go on with their own run by `resume_from_checkpoint`, or start from {base!r}."
        )
    set_seed(run.training.seed)  # adapters start at random numbers
    backbone = _load_base(run, base)
    if adapter is not None:
        backbone = _put_on(backbone, adapter, merge=train)
        if keep_base and run.model.use_peft:
            save_model(backbone, merged_folder(run))
            backbone.source = str(merged_folder(run))
    if not train:
        backbone.model.requires_grad_(False)
        return backbone
    model, processor = backbone.model, backbone.processor
    peft_config = peft_config_for(run, backbone.base)
    trainable = run.script.trainable
    if trainable is None:
        trainable = [] if peft_config is not None else list(run.script.TRAINS)
    policy = make_backbone(
        model, processor, peft_config=peft_config, trainable=trainable, source=backbone.source
    )
    if peft_config is not None:
        # As the user wrote it, so that the adapter can be loaded on another machine.
        written: Any = policy.model
        name = base if adapter is None else str(merged_folder(run))
        written.peft_config["default"].base_model_name_or_path = name
    return policy


def model_and_adapter(run: RunConfig) -> tuple[str, str | None]:
    """The base model's name and the adapter's folder; a folder with only an adapter names its base.

    Raises:
        ConfigError: no model is named, or the adapter is none.
    """
    name, adapter = run.model.model_name_or_path, run.script.adapter_path
    if name is None:
        raise ConfigError(
            "`model_name_or_path` is missing; give a hub id, a folder or `mmft/tiny-captioner`."
        )
    folder = Path(name)
    if adapter in (None, name) and _holds_only_an_adapter(folder):
        adapter = name
        name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise ConfigError(
            f"`adapter_path` {adapter} holds no adapter_config.json; give the folder of a PEFT adapter."
        )
    if adapter is not None and _holds_only_an_adapter(Path(name)):
        raise ConfigError(
            f"`model_name_or_path` {name} holds an adapter without its base model, which {adapter} cannot be "
            f"put on. Set `model_name_or_path` to the base model, or to {adapter} alone."
        )
    return str(name), adapter


def _holds_only_an_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def merged_folder(run: RunConfig) -> Path:
    """Where a run keeps the model it started from, if that exists nowhere else."""
    return Path(run.training.output_dir) / BASE_FOLDER


def _load_base(run: RunConfig, name: str) -> Backbone:
    options: dict[str, Any] = {"revision": run.model.model_revision}
    quantization = get_quantization_config(run.model)
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": run.training.local_process_index}}
    try:
        return load_backbone(
            name,
            trainable=(),
            dtype=run.model.dtype or "auto",
            attn_implementation=run.model.attn_implementation,
            **options,
        )
    except (ConfigError, UnsupportedModelError):
        raise
    # What transformers raises for names and folders without a model, and where a quantiser is not installed.
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"`model_name_or_path` {name!r} cannot be loaded: {error}") from error


def _put_on(backbone: Backbone, adapter: str, *, merge: bool) -> Backbone:
    model: Any = load_adapter(backbone.base, adapter)
    if merge:
        model = model.merge_and_unload()
    return Backbone(model, backbone.processor)


def save_model(backbone: Backbone, folder: Path) -> None:
    """Writes a model without adapters, and its processor."""
    backbone.base.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)


def peft_config_for(run: RunConfig, model: PreTrainedModel) -> PeftConfig | None:
    """The adapters a config asks for: by method and parts, or on the modules it names."""
    script, chosen = run.script, run.model
    if not chosen.use_peft:
        return None
    return adapter_config(
        model,
        method=script.peft_method,
        parts=script.adapt or DEFAULT_PARTS,
        r=chosen.lora_r,
        alpha=chosen.lora_alpha,
        dropout=chosen.lora_dropout,
        bottleneck_size=script.bottleneck_size,
        target_modules=chosen.lora_target_modules,
        target_parameters=chosen.lora_target_parameters,
        modules_to_save=chosen.lora_modules_to_save,
        use_dora=chosen.use_dora,
        use_rslora=chosen.use_rslora,
        task_type=chosen.lora_task_type,
    )


def parameter_counts(backbone: Backbone) -> dict[str, tuple[int, int]]:
    """Per part of the model the number of parameters and of those that train, adapters included."""
    counts: dict[str, tuple[int, int]] = {}
    for part, _, parameter in parameter_parts(backbone.base):
        total, trained = counts.get(part, (0, 0))
        size = parameter.numel()
        counts[part] = (total + size, trained + size * parameter.requires_grad)
    return {part: counts[part] for part in PARTS if part in counts}
