"""What every test shares: no network, one thread per process, one seed."""

from __future__ import annotations

import os

# Read by the Hugging Face libraries when they are imported, so set before anything imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """Gives each test the same random numbers, whatever ran before it on the same worker."""
    torch.manual_seed(0)
