"""A run's folder is locked for one run."""

from pathlib import Path

import pytest

from rm_jax.workdir.folder import locked


def test_a_run_that_finds_the_folder_locked_does_not_remove_it(tmp_path, monkeypatch):
  run, exists = tmp_path / "run", Path.exists
  with locked(run):
    # The second run checks for the folder just before the first one makes it.
    monkeypatch.setattr(Path, "exists", lambda path: path != run and exists(path))
    for _ in range(2):
      with pytest.raises(ValueError, match="is in use by process"), locked(run):
        pass
    monkeypatch.undo()
    assert [path.name for path in run.iterdir()] == [".lock"]
  assert not run.exists()  # a run that wrote nothing removes the folder that it made
