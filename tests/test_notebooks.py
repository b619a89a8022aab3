"""The notebooks run from top to bottom, on toy sizes, in a kernel of their own."""

import os
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, monkeypatch):
  nbclient = pytest.importorskip("nbclient")
  import nbformat

  monkeypatch.setenv("RM_JAX_SMALL", "1")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  if jax.config.jax_compilation_cache_dir:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": os.fspath(path.parent)}}
  )
  client.execute()  # raises on the first cell that fails
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  pictures = sum("image/png" in output.get("data", {}) for output in outputs)
  assert pictures >= 4


def test_there_is_one():
  assert NOTEBOOKS
