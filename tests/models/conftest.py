"""Makes `tests.models` importable however pytest is started, and keeps the oracle to one core."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[2]))

if importlib.util.find_spec("torch"):
  import torch

  torch.set_num_threads(1)
