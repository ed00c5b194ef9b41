"""A small model and one finished run, which the tests of several commands look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmft.cli import main
from tests import zoo
from tests.cli.support import SETTINGS, write_config


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    zoo.build_model("llava").save_pretrained(folder)
    zoo.build_processor("llava").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def run_folder(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished `mmft ppo` run that several tests look at."""
    folder = tmp_path_factory.mktemp("ppo")
    settings = SETTINGS | {"model_name_or_path": model_folder, "output_dir": str(folder / "run")}
    assert main(["ppo", "--config", write_config(folder, settings)]) == 0
    return folder / "run"
