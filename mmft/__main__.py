"""`python -m mmft`, `accelerate launch -m mmft` and `torchrun -m mmft`."""

from __future__ import annotations

import sys

from mmft.cli import main

sys.exit(main())
