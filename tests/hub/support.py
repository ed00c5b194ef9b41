"""What the tests of the hub share: a folder that looks like a finished run, made of a few bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CARD = """\
---
library_name: peft
tags:
- mmft
---

# {name}

Numbers.

<!-- rows of the data -->

## Samples

| `a private picture` |

<!-- end of the rows -->

## Use

```python
model = PeftModel.from_pretrained(base, '{folder}')
```
"""
SHARED = [
    "README.md", "adapter_config.json", "adapter_model.safetensors", "config.yaml", "curves.png",
    "heads.safetensors", "metrics.jsonl", "rewards.json", "summary.json", "tokenizer.json",
]  # fmt: skip
"""Files of `make_run` that go to the hub whatever the data are."""
ROWS = [
    "card/0.jpg", "explain/0_heat.png", "explain/explain.json", "overview.png", "report.html",
    "samples.jsonl", "samples/00000.jpg",
]  # fmt: skip
"""Those that show rows of the data."""
STAY = {
    "checkpoint-2/": "a checkpoint; --include-checkpoints sends its weights",
    "merged/": "the whole model again; it can be pushed as a model of its own",
    "notes.txt": "not on the list of what is shared",
    "training_args.bin": "pickled settings, which may hold a token",
    "wandb/": "a tracker's log",
}


def make_run(folder: Path, **settings: Any) -> Path:
    """A run of `mmft ppo` on the packaged captioner and the drawn scenes, unless settings say otherwise."""
    told = {
        "algorithm": "ppo",
        "dataset_name": "mmft/scenes",
        "model_name_or_path": "mmft/tiny-captioner",
        "reward_funcs": ["captioning"],
        "output_dir": str(folder),
    }
    base = {"base_model_name_or_path": "mmft/tiny-captioner", "peft_type": "LORA", "r": 2}
    texts = {
        "README.md": CARD.format(name=folder.name, folder=folder),
        "adapter_config.json": json.dumps(base),
        "config.yaml": yaml.safe_dump(told | settings, sort_keys=False),
        "metrics.jsonl": '{"step": 1, "reward": 0.5}\n',
        "rewards.json": "{}",
        "summary.json": json.dumps({"steps": 1, "warnings": []}),
        "tokenizer.json": json.dumps({"pad_token": "<pad>"}),
        "report.html": f"<html>{folder}/samples</html>",
        "samples.jsonl": '{"key": ["validation", 0], "prompt": "private"}\n',
        "explain/explain.json": "{}",
        "notes.txt": "mine",
        "checkpoint-2/trainer_state.json": "{}",
        "checkpoint-2/README.md": "another card",
    }
    bytes_of = {
        name: f"bytes of {name}".encode()
        for name in (
            "adapter_model.safetensors", "heads.safetensors", "curves.png", "overview.png", "card/0.jpg",
            "samples/00000.jpg", "explain/0_heat.png", "training_args.bin", "wandb/run.wandb",
            "merged/model.safetensors", "checkpoint-2/optimizer.pt", "checkpoint-2/adapter_model.safetensors",
        )
    }  # fmt: skip
    for name, content in bytes_of.items() | {name: text.encode() for name, text in texts.items()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
