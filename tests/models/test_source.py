"""What opens a checkpoint's folder: no code of its own runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rm_jax.models import source
from tests.conftest import decoder_tokenizer

ROOT = Path(__file__).parents[2]
# Where it is imported it leaves a file beside it, and is a tokenizer that could be loaded.
EVIL = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({ran!r}).touch()
from transformers import PreTrainedTokenizerFast as T
from transformers import LlamaConfig as C
"""


def plant(folder, ran):
  """A folder whose tokenizer and config are said to be classes of its own Python file."""
  decoder_tokenizer().save_pretrained(folder)
  said = json.loads((folder / "tokenizer_config.json").read_text())
  said |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
  (folder / "tokenizer_config.json").write_text(json.dumps(said))
  config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "evil.py").write_text(EVIL.format(ran=str(ran)))


def test_python_in_a_folder_does_not_run_after_a_yes(tmp_path):
  folder, ran = tmp_path / "model", tmp_path / "ran"
  folder.mkdir()
  plant(folder, ran)
  code = (
    "import sys\n"
    "from rm_jax.models import source\n"
    "try:\n  source.load_tokenizer(sys.argv[1])\n"
    "except ValueError as error:\n  print(error)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(folder)],
    input="y\n" * 9,  # it is asked more than once
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "HF_HOME": str(tmp_path / "hub")},
  )
  assert not ran.exists()
  assert not list(tmp_path.rglob("*.pyc"))
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 1, lines
  assert "by auto_map; we run none" in lines[0]
  assert "[y/N]" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_where_transformers_has_the_class_the_folder_s_own_is_not_taken(tmp_path, name):
  plant(tmp_path, tmp_path / "ran")
  other = {"config.json": "tokenizer_config.json", "tokenizer_config.json": "config.json"}[name]
  said = json.loads((tmp_path / other).read_text())
  said |= {"auto_map": None, "model_type": "llama", "tokenizer_class": "PreTrainedTokenizerFast"}
  said = {key: value for key, value in said.items() if value is not None}
  (tmp_path / other).write_text(json.dumps(said))
  if name == "tokenizer_config.json":
    with pytest.raises(ValueError, match="by auto_map; we run none"):
      source.load_tokenizer(tmp_path)
  else:
    assert source.load_tokenizer(tmp_path)("ab").input_ids == decoder_tokenizer()("ab").input_ids
  assert not (tmp_path / "ran").exists()
