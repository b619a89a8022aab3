"""Whose a run's folder is."""

from pathlib import Path

import pytest

from rm_jax.workdir.folder import locked


def test_who_comes_a_moment_too_late_leaves_the_folder_to_its_run(tmp_path, monkeypatch):
  run, exists = tmp_path / "run", Path.exists
  with locked(run):
    # Another looked just before the folder was made.
    monkeypatch.setattr(Path, "exists", lambda path: path != run and exists(path))
    for _ in range(2):
      with pytest.raises(ValueError, match="is in use by process"), locked(run):
        pass
    monkeypatch.undo()
    assert [path.name for path in run.iterdir()] == [".lock"]
  assert not run.exists()  # a run that could not begin leaves nothing
