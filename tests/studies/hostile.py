"""Loads damaged and malicious models: each must be refused with a typed error or load correctly.

    python -m tests.studies.hostile --seed=1 --mutants=1500

It prints a table of how many of each kind were refused, loaded correctly, or neither, with the
longest time and the largest memory. The exit code is 1 if any was neither. Takes some five minutes
on two cores.

- mutants of a safetensors folder (any of its files) and of a GGUF file: bytes flipped, overwritten,
  inserted, deleted, doubled or cut off; numbers of a header and values of JSON replaced.
- folders (`hostile_cases`): files written by hand, each with one thing wrong.
- templates (`hostile_cases`): chat templates that fail, do not end, or reach for other objects.

A model has loaded correctly if each weight equals, bit for bit, what `safetensors` or the `gguf`
package reads from the same bytes, its config is that of the file, and a text gets the tokens that
`tokenizers` gives it. A flipped bit inside a weight is therefore correct: no file format checks it,
and the file now says the other number. Models are loaded in a worker process, which is killed after
20 s or a gibibyte; the memory of a load may be at most the decoded weights plus 64 MiB. A marker
file beside the models shows whether any code of theirs was run.
"""

import argparse
import collections
import copy
import hashlib
import json
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import safetensors.numpy
import tokenizers

from tests.studies.hostile_cases import TEMPLATES, folders, header_of, put_header

TEXT = "the cat sat on 12 mats <s> é"
SECONDS, MEBIBYTES = 20.0, 64.0
LIMIT_MIB = 1024.0


# --- Loading a model, and checking the result ------------------------------------------------


def make_bases(folder: Path) -> tuple[Path, Path]:
  """Makes two small undamaged models with tokenizers: (a saved folder, a GGUF file)."""
  import jax

  from rm_jax.models.network import Network
  from rm_jax.pretrained import hf
  from rm_jax.pretrained.config import backbone_config, head_config
  from rm_jax.pretrained.source import save_folder
  from tests.conftest import LLAMA, decoder_tokenizer
  from tests.pretrained import test_gguf, test_gguf_tokenizer

  config = {
    **LLAMA,
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "head_dim": 8,
    "rope_theta": 10000.0,
  }
  network = Network(backbone_config(config), head_config(config))
  save_folder(
    folder / "model",
    config=config,
    tokenizer=decoder_tokenizer([("t", "h"), ("th", "e")]),
    record={
      "convention": {"encoder": False, "eos": "append", "pooling": "last", "max_length": 64},
      "head": {"outputs": 1, "attributes": [], "mix": []},
      "frozen_layers": 0,
    },
    tensors=hf.export_params(network, network.init(jax.random.key(0))),
  )
  keys = test_gguf_tokenizer.tokenizer_keys(test_gguf_tokenizer.trained("smollm"), "smollm")
  keys["tokenizer.chat_template"] = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  vocab = len(keys["tokenizer.ggml.tokens"])
  tensors = test_gguf.converted("llama", test_gguf.hf_tensors("llama"))
  rng = np.random.default_rng(0)
  tensors["token_embd.weight"] = rng.normal(size=(vocab, test_gguf.D)).astype(np.float32)
  kinds = {"token_embd.weight": gguf_package.GGMLQuantizationType.Q8_0}
  return folder / "model", test_gguf.write_model(folder, "llama", keys, tensors=tensors, raw=kinds)


def sha(array: np.ndarray) -> str:
  return hashlib.sha1(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()[:12]


def load(path: str) -> dict[str, Any]:
  """Loads a model: {weights: their hashes, bytes: their size, config, ids: tokens of a text}."""
  from rm_jax.api import RewardModel
  from rm_jax.models.network import Network
  from rm_jax.pretrained import hf
  from rm_jax.pretrained.config import backbone_config, head_config
  from rm_jax.pretrained.source import open_source

  if not path.endswith(".gguf"):
    model = RewardModel.from_pretrained(path)
    network, params, config = model.text_model.network, model.params, model.text_model.config
    ids = model.text_model.text_encoder().sequences([(TEXT, "a")])[0]
    ids = repr(ids) if not hasattr(ids, "ids") else ids.ids.tolist()
  else:
    source = open_source(path)
    config = source.config
    network = Network(backbone_config(config), head_config(config))
    params, _ = hf.load_params(network, source.tensors(), lambda _, array: array, source=path)
    ids = source.tokenizer()(TEXT).input_ids
  weights = {name: array for name, array in hf.export_params(network, params)}
  return {
    "weights": {name: sha(array) for name, array in weights.items()},
    "bytes": sum(array.nbytes for array in weights.values()),
    "config": config,
    "ids": ids,
  }


def judge(path: Path, said: dict[str, Any]) -> str:
  """How a loaded model differs from what the libraries read from the file; '' if it does not."""
  try:
    return (_judge_gguf if path.suffix == ".gguf" else _judge_folder)(path, said)
  except Exception as error:  # A file that the libraries refuse should not have loaded.
    return f"the libraries do not read it: {type(error).__name__}: {error}"


def _differ(weights: dict[str, np.ndarray], said: dict[str, str]) -> str:
  # Only the loaded weights are compared: a file may also hold a language-model head and buffers,
  # which a reward model does not load.
  wrong = [n for n in said if n not in weights or sha(weights[n]) != said[n]]
  return f"weights differ: {wrong[:3]}" if wrong else ""


def _judge_folder(path: Path, said: dict[str, Any]) -> str:
  shards = sorted(path.glob("*.safetensors"))
  arrays = {}
  for shard in shards:
    arrays |= safetensors.numpy.load_file(shard)
  config = json.loads((path / "config.json").read_text())
  if json.dumps(said["config"]) != json.dumps(config):  # Compared as text, where NaN equals NaN.
    return "config differs"
  whole = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
  eos = json.loads((path / "tokenizer_config.json").read_text()).get("eos_token")
  ids = whole.encode(TEXT + "a").ids
  ends = whole.token_to_id(eos if isinstance(eos, str) else "</s>")
  record = path / "rm_jax.json"
  convention = json.loads(record.read_text()).get("convention", {}) if record.exists() else {}
  positions = config.get("max_position_embeddings", 2048)
  # A longer text is truncated. Without a record only the model's number of positions limits it.
  fits = len(ids) + 1 <= min(convention.get("max_length", 1024), positions)
  found = said["ids"]
  # transformers gives a special token that only the tokenizer's config names the next free id.
  if ends is None and isinstance(found, list) and found[-1:] >= [whole.get_vocab_size()]:
    ends = found[-1]
  if fits and isinstance(found, list) and found not in (ids, [*ids, ends]):
    return f"tokens are {found}, and by tokenizers {ids}"
  return _differ(arrays, said["weights"])


_NAMES = {
  "token_embd": "embed_tokens",
  "output_norm": "norm",
  "attn_norm": "input_layernorm",
  "ffn_norm": "post_attention_layernorm",
  "attn_output": "self_attn.o_proj",
  **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
  **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
_KEYS = {
  "embedding_length": "hidden_size",
  "block_count": "num_hidden_layers",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "context_length": "max_position_embeddings",
}


def _judge_gguf(path: Path, said: dict[str, Any]) -> str:
  reader = gguf_package.GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  config, weights = said["config"], {}
  for theirs, ours in _KEYS.items():
    if (found := fields.get(f"llama.{theirs}", config[ours])) != config[ours]:
      return f"{ours} is {config[ours]}, and by gguf {found}"
  for tensor in reader.tensors:
    *layer, part = tensor.name.removesuffix(".weight").removesuffix(".bias").split(".")
    kind = tensor.name.rpartition(".")[2]
    name = ".".join(["model", *(["layers", layer[1]] if layer else []), _NAMES.get(part, part)])
    array = gguf_package.dequantize(tensor.data, tensor.tensor_type)
    if part in ("attn_q", "attn_k"):
      # llama.cpp interleaves the two halves of each head: its row 2 p + s is our row s half + p.
      heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
      size = len(array) // heads
      row = np.arange(len(array))
      at = row % size
      array = array[row - at + at % (size // 2) * 2 + at // (size // 2)]
    weights[f"{name}.{kind}"] = array
  ids = said["ids"]
  tokens = fields["tokenizer.ggml.tokens"]
  if not all(0 <= i < len(tokens) for i in ids):
    return f"tokens {ids} are not of the file's {len(tokens)}"
  return _differ(weights, said["weights"])


# --- Making mutants --------------------------------------------------------------------------

_WHOLE = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63)
_VALUES = (
  *(None, True, False, -1, 0, 1, 2, 7, 1.5, -0.0, 10**6, 3 * 10**8, 1 << 40, 1 << 63, 1 << 70),
  *(float("nan"), float("inf"), 1e39, "", "x", "2", "../../etc/passwd", "{{ 1/0 }}", "a" * 9999),
  *([], [1], ["x"], [[]], {}, {"a": 1}, {"0": {}}),
)


def _bytes(data: bytes, rng: random.Random, end: int) -> bytes:
  """A copy of the data with a few random changes before `end`."""
  out = bytearray(data)
  for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
    at = rng.randrange(max(1, min(end, len(out))))
    many = rng.choice([1, 2, 4, 7, 8, 32, 64])
    match rng.randrange(10):
      case 0 | 1 | 2 if out:
        out[at % len(out)] ^= 1 << rng.randrange(8)
      case 3 if out:
        out[at % len(out)] = rng.randrange(256)
      case 4:
        del out[at : at + many]
      case 5:
        out[at:at] = rng.randbytes(many)
      case 6:
        out[at:at] = out[at : at + many]  # Doubles them.
      case 7:
        out[at : at + many] = bytes(len(out[at : at + many]))
      case 8:
        out[at : at + 8] = struct.pack("<Q", rng.choice(_WHOLE))[: len(out[at : at + 8])]
      case 9:
        numbers = list(re.finditer(rb"\d+", bytes(out[:end])))
        if numbers and rng.random() < 0.7:
          one = rng.choice(numbers)
          out[one.start() : one.end()] = json.dumps(rng.choice(_VALUES)).encode()
        elif rng.random() < 0.3:
          del out[at:]
  return bytes(out)


def _values(value: Any, rng: random.Random) -> Any:
  """A copy of a JSON value with one part replaced, left out, renamed or changed as a number."""
  value = copy.deepcopy(value)
  at, path = value, []
  while isinstance(at, dict | list) and at and (not path or rng.random() < 0.8):
    key = rng.choice(sorted(at)) if isinstance(at, dict) else rng.randrange(len(at))
    path.append((at, key))
    at = at[key]
  if not path:
    return rng.choice(_VALUES)
  parent, key = path[-1]
  match rng.randrange(8):
    case 0:
      del parent[key]
    case 1 if isinstance(parent, dict):
      parent[rng.choice(["", "x", key + "x"])] = parent.pop(key)
    case 2 if isinstance(at, int) and not isinstance(at, bool):
      parent[key] = at + rng.choice([-1, 1, at, -2 * at])
    case _:
      parent[key] = rng.choice(_VALUES)
  return value


def safetensors_mutant(base: Path, target: Path, rng: random.Random) -> None:
  """Copies the folder and changes one file, which is the weights in four cases of ten."""
  shutil.copytree(base, target)
  names = sorted(p.name for p in base.iterdir() if p.name != "model.safetensors")
  file = target / ("model.safetensors" if rng.random() < 0.4 else rng.choice(names))
  data = file.read_bytes()
  end = len(data)
  if file.suffix == ".safetensors":
    header, rest = header_of(target)
    if rng.random() < 0.4:
      put_header(target, json.dumps(_values(header, rng)), rest)
      return
    end = len(data) - len(rest) if rng.random() < 0.85 else end
  elif file.suffix == ".json" and rng.random() < 0.6:
    file.write_text(json.dumps(_values(json.loads(data), rng)))
    return
  file.write_bytes(_bytes(data, rng, end))


def gguf_mutant(base: Path, target: Path, rng: random.Random) -> None:
  """Copies the file with changes: mostly in its header, else in the first 64 bytes or anywhere."""
  data = base.read_bytes()
  header = data.index(b"blk.1.ffn_down.weight") + 64
  end = rng.choice([64, *[header] * 8, len(data), len(data)])
  target.write_bytes(_bytes(data, rng, end))


# --- Trying them -----------------------------------------------------------------------------


def render(template: str) -> str:
  """Applies a chat template: returns the number of tokens, or the reason to leave the row out."""
  from rm_jax.batch.tokenise import Convention, TextEncoder
  from rm_jax.world import make_tokenizer

  tokenizer = make_tokenizer()
  tokenizer.chat_template = template
  prompt = [{"role": "user", "content": "hello there"}]
  answer = [{"role": "assistant", "content": "good"}]
  found = TextEncoder(tokenizer, Convention(max_length=64)).sequences([(prompt, answer)])[0]
  return f"{len(found.ids)} tokens" if hasattr(found, "ids") else f"{found.reason}"


def attempt(call: Any, *args: Any) -> dict[str, Any]:
  """Calls a function: {'ok': its result}, {'typed': an error of ours} or {'untyped': any other}."""
  try:
    return {"ok": call(*args)}
  except (ValueError, OSError) as error:
    return {"typed": f"{type(error).__name__}: {error}"[:400]}
  # A panic in a Rust extension is a BaseException, not an Exception.
  except BaseException as error:
    return {"untyped": f"{type(error).__name__}: {error}"[:400]}


def _resident(field: str) -> float:
  return int(re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def work() -> None:
  """The worker process: answers each line of JSON [what, argument] with a line of JSON."""
  out = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # Whatever libraries print to stdout goes to stderr, not between the answers.
  calls = {"load": load, "render": render}
  for line in sys.stdin:
    what, argument = json.loads(line)
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak of resident memory.
    before, start = _resident("VmRSS"), time.monotonic()
    found = attempt(calls[what], argument)
    found |= {"seconds": time.monotonic() - start, "mib": _resident("VmHWM") - before}
    print(json.dumps(found), file=out)


class Worker:
  """A process that loads one model after the other; it is replaced if it has to be killed.

  Args:
    warm: a first task, whose time and memory are not counted: it imports everything.
  """

  def __init__(self, warm: tuple[str, str]):
    self.warm = warm
    self.process: subprocess.Popen | None = None

  def do(self, what: str, argument: str) -> dict[str, Any]:
    """The result of `attempt` with its seconds and MiB, or {'hang' | 'memory' | 'crash': how}."""
    if self.process is None:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "tests.studies.hostile", "--work"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
      )
      self._ask(*self.warm, seconds=300.0)
    found = self._ask(what, argument, seconds=SECONDS)
    if not found.keys() & {"ok", "typed", "untyped"}:
      self.close()
    return found

  def _ask(self, what: str, argument: str, seconds: float) -> dict[str, Any]:
    start, status = time.monotonic(), Path(f"/proc/{self.process.pid}/statm")
    pages = int(status.read_text().split()[1])
    print(json.dumps([what, argument]), file=self.process.stdin, flush=True)
    while (took := time.monotonic() - start) < seconds:
      if select.select([self.process.stdout], [], [], 0.05)[0]:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"crash": str(self.process.wait()), "seconds": took}
      more = (int(status.read_text().split()[1]) - pages) / 256
      if more > LIMIT_MIB and seconds == SECONDS:
        return {"memory": f"{more:.0f} MiB", "seconds": took, "mib": more}
    return {"hang": f"{took:.0f} s", "seconds": took}

  def close(self) -> None:
    if self.process is not None:
      self.process.kill()
      self.process.communicate()
      self.process = None


KINDS = ("refused", "right", "wrong", "untyped", "hang", "memory", "crash", "ran code")


class Table:
  """Counts of outcomes by kind of model, the longest time and largest memory, and all failures."""

  def __init__(self):
    self.counts: dict[str, collections.Counter] = {}
    self.most: dict[str, list[float]] = {}
    self.amiss: list[str] = []

  def add(self, row: str, name: str, found: dict[str, Any], wrong: str, ran: bool) -> None:
    kind = "refused" if "typed" in found else next((k for k in KINDS if k in found), "right")
    said = found.get("typed") or found.get(kind) or ""
    over = found.get("mib", 0.0) - MEBIBYTES
    if "ok" in found:
      over -= (found["ok"]["bytes"] if isinstance(found["ok"], dict) else 0) / 2**20
      kind, said = ("wrong", wrong) if wrong else ("right", "")
    if over > 0 and kind in ("refused", "right"):
      kind, said = "memory", f"{found['mib']:.0f} MiB; {said}"
    if ran:
      kind, said = "ran code", said
    self.counts.setdefault(row, collections.Counter())[kind] += 1
    most = self.most.setdefault(row, [0.0, 0.0])
    most[:] = max(most[0], found["seconds"]), max(most[1], found.get("mib", 0.0))
    if kind not in ("refused", "right"):
      self.amiss.append(f"{row}: {name}: {kind}: {said}"[:300])

  def __str__(self) -> str:
    lines = [" | ".join(["what", "n", *KINDS, "slowest", "largest"])]
    for row, counts in self.counts.items():
      seconds, mib = self.most[row]
      numbers = [str(sum(counts.values())), *(str(counts[kind]) for kind in KINDS)]
      lines.append(" | ".join([row, *numbers, f"{seconds:.2f} s", f"{mib:.0f} MiB"]))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--mutants", type=int, default=1500, help="of safetensors, and of GGUF")
  parser.add_argument("--parts", default="safetensors,gguf,folders,templates")
  args = parser.parse_args(argv)
  parts, table = args.parts.split(","), Table()
  with tempfile.TemporaryDirectory() as name:
    scratch = Path(name)
    base, file = make_bases(scratch)
    ran, target = scratch / "ran", scratch / "target"
    worker = Worker(("load", str(base)))
    for row, make in (("safetensors", safetensors_mutant), ("gguf", gguf_mutant)):
      rng = random.Random(f"{args.seed} {row}")
      for i in range(args.mutants if row in parts else 0):
        path = target / ("m.gguf" if row == "gguf" else "model")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        make(base if row == "safetensors" else file, path, rng)
        found = worker.do("load", str(path))
        wrong = judge(path, found["ok"]) if "ok" in found else ""
        table.add(row, f"mutant {i}", found, wrong, False)
    for what, make in folders(base, file, ran) if "folders" in parts else ():
      shutil.rmtree(target, ignore_errors=True)
      shutil.copytree(base, target)
      ran.unlink(missing_ok=True)
      path = make(target) or target
      found = worker.do("load", str(path))
      wrong = judge(path, found["ok"]) if "ok" in found else ""
      table.add("folders", what, found, wrong, ran.exists())
    worker.close()
    worker = Worker(("render", "{{ messages }}"))
    for template in TEMPLATES if "templates" in parts else ():
      table.add("templates", repr(template), worker.do("render", template), "", False)
    worker.close()
  print(table)
  print("\n".join(["", "amiss:", *table.amiss] if table.amiss else ["", "nothing amiss"]))
  return bool(table.amiss)


if __name__ == "__main__":
  if sys.argv[1:] == ["--work"]:
    work()
  else:
    sys.exit(main(sys.argv[1:]))
