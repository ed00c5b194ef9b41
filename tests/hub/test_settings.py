"""config.yaml holds no secret, and says what it leaves out."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmft.cli.arguments import parse_run
from tests.hub.server import TOKEN


def test_tokens_and_keys_are_not_written_and_the_file_says_so(tmp_path: Path):
    reward = {"name": "my_module:judge", "api_key": "my own key", "api_key_env": "MY_KEY", "strict": True}
    recipe = {
        "model_name_or_path": "mmft/tiny-captioner",
        "dataset_name": "mmft/scenes",
        "reward_funcs": [reward, "bleu"],
        "output_dir": str(tmp_path / "run"),
        "hub_token": TOKEN,
        "use_cpu": True,
        "bf16": False,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = parse_run("ppo", ["--config", str(tmp_path / "recipe.yaml")])
    assert config.training.hub_token == TOKEN
    assert config.script.reward_funcs[0]["api_key"] == "my own key"
    config.save(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert TOKEN not in text
    assert "my own key" not in text
    assert text.splitlines()[:2] == [
        "# `api_key` is a secret, and is not written here.",
        "# `hub_token` is a secret, and is not written here.",
    ]
    kept = {"name": "my_module:judge", "api_key_env": "MY_KEY", "strict": True}
    assert yaml.safe_load(text)["reward_funcs"] == [kept, "bleu"]
    parse_run("ppo", ["--config", str(tmp_path / "config.yaml")])


def test_a_file_without_secrets_says_nothing_of_them(tmp_path: Path):
    told = {"model_name_or_path": "x/y", "output_dir": "runs/x", "use_cpu": "true", "bf16": "false"}
    words = [word for name, value in told.items() for word in (f"--{name}", value)]
    parse_run("ppo", words).save(tmp_path / "config.yaml")
    assert "secret" not in (tmp_path / "config.yaml").read_text()
