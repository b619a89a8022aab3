"""Folders, GGUF files and chat templates that each have one thing wrong; see `hostile`."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
  """The header of a folder's safetensors, and what is behind it."""
  data = (folder / "model.safetensors").read_bytes()
  length = int.from_bytes(data[:8], "little")
  return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_header(folder: Path, header: str, data: bytes, length: int | None = None) -> None:
  """Writes a folder's safetensors; `length` is what it says of its header."""
  raw = header.encode()
  size = (len(raw) if length is None else length).to_bytes(8, "little")
  (folder / "model.safetensors").write_bytes(size + raw + data)


Make = Callable[[Path], Path | None]  # changes a copy of the folder; or says which file to load


def folders(base: Path, file: Path, ran: Path) -> Iterator[tuple[str, Make]]:
  """(what is wrong, how it is made) of each folder and file; `ran` is touched by code in them."""
  evil = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass T: pass\nC = T\n"
  pickle = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
  yield from _code(evil, pickle)
  yield from _indices(base)
  yield from _headers(base)
  for said in CONFIGS:
    yield f"config.json {str(said)[:60]}", _json("config.json", said)
  for said in RECORDS:
    yield f"rm_jax.json {str(said)[:60]}", _json("rm_jax.json", said)
  for name in ("config.json", "rm_jax.json", "tokenizer.json", "tokenizer_config.json"):
    for what, text in TEXTS.items():
      yield f"{name}: {what}", _text(name, text)
  for said in TOKENIZERS:
    yield f"tokenizer.json {str(said)[:60]}", _json("tokenizer.json", said)
  for said in TOKENIZER_CONFIGS:
    yield f"tokenizer_config.json {str(said)[:60]}", _json("tokenizer_config.json", said)
  for name in ("model.safetensors", "config.json", "rm_jax.json", "tokenizer.json"):
    yield f"{name} is a pipe", _special(name, lambda p: os.mkfifo(p))
    yield f"{name} is a folder", _special(name, lambda p: p.mkdir())
    yield f"{name} -> /dev/zero", _special(name, lambda p: p.symlink_to("/dev/zero"))
    yield f"{name} is not there", _special(name, lambda p: None)
  yield from _ggufs(file)


def _json(name: str, said: Any) -> Make:
  def make(folder: Path) -> None:
    value = json.loads((folder / name).read_text())
    for path, new in said.items():
      *above, last = path.split("/")
      at = value
      for key in above:
        at = at[key]
      if new is ...:
        del at[last]
      else:
        at[last] = new
    (folder / name).write_text(json.dumps(value))

  return make


def _text(name: str, text: Any) -> Make:
  def make(folder: Path) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(text(whole) if callable(text) else text)

  return make


def _special(name: str, make_it: Callable[[Path], None]) -> Make:
  def make(folder: Path) -> None:
    (folder / name).unlink()
    make_it(folder / name)

  return make


def _code(evil: str, pickle: bytes) -> Iterator[tuple[str, Make]]:
  def planted(name: str, said: dict[str, Any]) -> Make:
    def make(folder: Path) -> None:
      _json(name, said)(folder)
      (folder / "evil.py").write_text(evil)

    return make

  def pickled(alone: bool) -> Make:
    def make(folder: Path) -> None:
      (folder / "pytorch_model.bin").write_bytes(pickle)
      if alone:
        (folder / "model.safetensors").unlink()

    return make

  auto = {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.T"}}
  tokenizer = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
  yield "a pickle alone", pickled(True)
  yield "a pickle beside", pickled(False)
  yield "config.json auto_map", planted("config.json", auto)
  yield "config.json auto_map, its type too", planted("config.json", auto | {"model_type": "evil"})
  yield "tokenizer auto_map", planted("tokenizer_config.json", tokenizer)
  listed = tokenizer | {"auto_map": ["evil.T", "evil.T"]}
  yield "tokenizer auto_map, a list", planted("tokenizer_config.json", listed)
  hub = tokenizer | {"auto_map": {"AutoTokenizer": ["some/name--evil.T", None]}}
  yield "tokenizer auto_map on the hub", planted("tokenizer_config.json", hub)
  yield (
    "tokenizer_class os.system",
    _json("tokenizer_config.json", {"tokenizer_class": "os.system"}),
  )


def _indices(base: Path) -> Iterator[tuple[str, Make]]:
  def index(shard: Any, whole: str = "") -> Make:
    def make(folder: Path) -> None:
      names = [name for name in header_of(folder)[0] if name != "__metadata__"]
      (folder / "model.safetensors").rename(folder / "w.safetensors")
      where = dict.fromkeys(names, "w.safetensors") | {names[0]: shard}
      text = whole or json.dumps({"weight_map": where})
      (folder / "model.safetensors.index.json").write_text(text)

    return make

  outside = base / "model.safetensors"
  for shard in (
    *("../../etc/passwd", "/etc/passwd", "../w.safetensors", str(outside), "sub/../w.safetensors"),
    *("..safetensors", "a\nb.safetensors", "w.safetensors\0", ".safetensors", "w.safetensors/"),
    *(5, None, ["w.safetensors"], {}, "", "none.safetensors"),
  ):
    yield f"index: {str(shard)[-30:]!r}", index(shard)
  for text in ("[" * 100_000, "{}", '{"weight_map": []}', '{"weight_map": {}}', "\0"):
    yield f"index is {text[:20]!r}", index(None, text)


def _headers(base: Path) -> Iterator[tuple[str, Make]]:
  header, data = header_of(base)
  first, second = [name for name in header if name != "__metadata__"][:2]
  shape, text = header[first]["shape"], json.dumps(header)

  def put(said: str | None = None, data: bytes = data, length: int | None = None, **entry) -> Make:
    changed = header | {first: header[first] | entry}
    return lambda folder: put_header(folder, said or json.dumps(changed), data, length)

  yield from {
    **{f"header of {n} bytes": put(length=n) for n in (0, 3, 1 << 40, (1 << 64) - 1)},
    "overlapping offsets": put(data_offsets=header[second]["data_offsets"]),
    "an offset of 2^62": put(data_offsets=[0, 1 << 62]),
    "a negative offset": put(data_offsets=[-4, 8]),
    "offsets the wrong way round": put(data_offsets=header[first]["data_offsets"][::-1]),
    "a shape that overflows": put(shape=[1 << 33, 1 << 33]),
    "a negative shape": put(shape=[-1, -1]),
    "another rank": put(shape=[*shape, 1]),
    "shape turned": put(shape=shape[::-1]),
    **{f"dtype {kind}": put(dtype=kind) for kind in ("F64", "I32", "U32", "F99", 5, None)},
    "every key twice": put(text[:-1] + "," + text[1:]),
    "an inner key twice": put(text.replace('"shape"', '"shape": [1], "shape"', 1)),
    "data cut by 10 bytes": put(data=data[:-10]),
    "10 bytes more": put(data=data + b"x" * 10),
    "10 bytes in between": put(data=data[:100] + b"x" * 10 + data[100:]),
    "90 MB of header": put(text + " " * 90_000_000),
    "200 MB of header": put(text + " " * 200_000_000),
    "a header 200,000 deep": put('{"a":' + "[" * 200_000),
    "metadata that are no strings": put(json.dumps(header | {"__metadata__": {"a": {"b": 1}}})),
    "NaN in a weight": put(data=data[:4000] + b"\xff" * 4 + data[4004:]),
    "infinity in a weight": put(data=data[:4000] + b"\0\0\x80\x7f" + data[4004:]),
    "a gap": put(json.dumps({k: v for k, v in header.items() if k != second})),
  }.items()


TEXTS: dict[str, Any] = {
  "empty": b"",
  "{}": b"{}",
  "[]": b"[]",
  "null": b"null",
  "zeros": bytes(1000),
  "not UTF-8": b'{"a": "\xff"}',
  "100,000 deep": b"[" * 100_000,
  "a key twice": lambda whole: whole.replace(b"{", b'{"vocab_size": 5, "vocab_size": 6,', 1),
  "cut": lambda whole: whole[: len(whole) // 2],
  "100 MB of spaces": lambda whole: whole + b" " * 100_000_000,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: list[dict[str, Any]] = [
  *({"num_hidden_layers": n} for n in (10**6, 3 * 10**8, 4, 0, -1, "2", 2.0, None, True)),
  *({"vocab_size": n} for n in (1 << 40, 299, 0)),
  *({"hidden_size": n} for n in (1 << 40, -32, 33)),
  *({"num_attention_heads": n} for n in (0, 5, 1 << 30)),
  *({"num_key_value_heads": n} for n in (0, 3, 1 << 30)),
  *({"head_dim": n} for n in (10**9, 0, 7)),
  *({"max_position_embeddings": n} for n in (10**15, 0, -5, 1)),
  *({"rope_theta": n} for n in (0, float("nan"), "x")),
  *({"rms_norm_eps": n} for n in (float("inf"), -1, "x")),
  *({"hidden_act": n} for n in ("os.system", 5, None)),
  {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 64}},
  *({"rope_scaling": n} for n in ("x", [], {"rope_type": "linear", "factor": 0}, {"type": 5})),
  *({"model_type": "mistral", "sliding_window": n} for n in (-5, "x", 1 << 40)),
  *({"model_type": "qwen2", "layer_types": n} for n in ([], ["x", "y", "z"], 5)),
  *({"model_type": n} for n in (["llama"], None, "bert", "gpt2", 5)),
  *({"architectures": n} for n in ("x", 5, [5], [])),
  {"intermediate_size": 0},
  *({"attention_dropout": n} for n in (5.0, "x")),
  {"id2label": {str(i): str(i) for i in range(200_000)}},
  *({"id2label": n} for n in ([1], {"0": "a", "1": "b"}, "x")),
  {"num_labels": 10**9},
  {"pad_token_id": 10**12},
  {"torch_dtype": "float64"},
  {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
  {"_name_or_path": "http://127.0.0.1:9/x"},
  {"cls": 1},
]
RECORDS: list[dict[str, Any]] = [
  {"convention": ...},
  *({"convention": n} for n in ("x", [], None, {})),
  {"convention/foo": 1},
  *({"convention/max_length": n} for n in (-1, 0, "a", 1.5, None, 10**12)),
  *({"convention/eos": n} for n in (5, "x")),
  {"convention/separator": 5},
  {"convention/date": "{{ ''.__class__ }}"},
  {"convention/encoder": True},
  {"convention/pooling": "mean"},
  *({"head/outputs": n} for n in (10**9, 0, -1, "1", 1.5, True)),
  {"head/attributes": ["a"], "head/mix": ["b"]},
  {"head/attributes": "a"},
  {"head/dropout": float("nan")},
  {"head/activation": "os.system"},
  {"head/x": 1},
  {"head": "x"},
  *({"frozen_layers": n} for n in (99, "x")),
  {"base": 5, "lora": {"rank": "x"}},
]
TOKENIZERS: list[dict[str, Any]] = [
  {"model/vocab": {f"w{i}": i for i in range(2_000_000)}},
  {"model/vocab": []},
  {"model/merges": [["no", "where"]]},
  {"model/type": "Evil"},
  *(
    {"pre_tokenizer": {**split, "behavior": "Isolated", "invert": False, "type": "Split"}}
    for split in ({"pattern": {"Regex": "(a|a)*$"}}, {"pattern": {"Regex": "((("}})
  ),
  {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a" * 10**6}},
  {
    "normalizer": {
      "type": "Sequence",
      "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 1000}] * 3,
    }
  },
  {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
  {"normalizer": 5},
  {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": []}},
  *({"added_tokens": [{"id": n, "content": "x"}]} for n in (-5, 1 << 32, "x")),
  {"added_tokens": 5},
]
TOKENIZER_CONFIGS: list[dict[str, Any]] = [
  *({"eos_token": n} for n in ({"x": 1}, 5, [], None)),
  *({"model_max_length": n} for n in ("x", -1)),
  {"chat_template": 5},
  {"tokenizer_class": "NoSuchTokenizer"},
  {"tokenizer_class": 5},
  {"tokenizer_file": "/etc/passwd"},
]


def _ggufs(file: Path) -> Iterator[tuple[str, Make]]:
  good = file.read_bytes()

  def u(code: str, value: Any) -> bytes:
    return struct.pack(f"<{code}", value)

  def put(data: bytes) -> Make:
    def make(folder: Path) -> Path:
      (folder / "m.gguf").write_bytes(data)
      return folder / "m.gguf"

    return make

  def after(key: str, offset: int, value: bytes) -> Make:
    at = good.index(key.encode()) + len(key) + offset
    return put(good[:at] + value + good[at + len(value) :])

  def more(key: bytes, kind: int, value: bytes) -> Make:
    count = u("Q", struct.unpack("<Q", good[16:24])[0] + 1)
    return put(good[:16] + count + u("Q", len(key)) + key + u("I", kind) + value + good[24:])

  cases = {"": b"", "magic": b"XXXX" + good[4:], "version": good[:4] + u("I", 99) + good[8:]}
  cases |= {f"cut to {n}": good[:n] for n in (4, 10, 30, 1000, 5000, len(good) // 2, len(good) - 1)}
  cases |= {f"{n} tensors": good[:8] + u("Q", n) + good[16:] for n in (0, 1 << 62)}
  cases |= {f"{n} keys": good[:16] + u("Q", n) + good[24:] for n in (0, 1 << 62)}
  middle = len(good) - 50_000
  cases |= {f"{n} bytes put in": good[:middle] + b"x" * n + good[middle:] for n in (1, 32, 4096)}
  cases |= {"bytes behind": good + b"x" * 64}
  for name, data in cases.items():
    yield f"gguf: {name}", put(data)
  for key in ("tokens", "token_type", "merges"):
    for count in (1 << 60, 10**6, 0, 295):
      yield f"gguf: {count} {key}", after(f"tokenizer.ggml.{key}", 8, u("Q", count))
    yield f"gguf: {key} of arrays", after(f"tokenizer.ggml.{key}", 4, u("I", 9))
  for key, values in {
    "llama.block_count": (1 << 31, 3 * 10**7, 0, 3),
    "llama.attention.head_count": (0, 3, 1 << 31),
    "llama.embedding_length": ((1 << 32) - 1, 31),
    "llama.context_length": ((1 << 32) - 1, 0),
    "llama.attention.key_length": (0, 8),
    "tokenizer.ggml.bos_token_id": ((1 << 32) - 1,),
  }.items():
    for value in values:
      yield f"gguf: {key}={value}", after(key, 4, u("I", value))
  yield "gguf: 2^31 dimensions", after("token_embd.weight", 0, u("I", 1 << 31))
  yield "gguf: a dimension of 2^60", after("token_embd.weight", 4, u("Q", 1 << 60))
  yield "gguf: a type of 999", after("token_embd.weight", 20, u("I", 999))
  yield "gguf: whole numbers", after("output_norm.weight", 12, u("I", 26))
  yield "gguf: an offset of 2^63", after("token_embd.weight", 24, u("Q", 1 << 63))
  for value in (0, 3, 1 << 31):
    yield f"gguf: alignment {value}", more(b"general.alignment", 4, u("I", value))
  yield "gguf: a key twice", more(b"general.architecture", 8, u("Q", 5) + b"llama")
  yield "gguf: parts", more(b"split.count", 8, u("Q", 1) + b"x")
  deep = (u("I", 9) + u("Q", 1)) * 5000 + u("I", 4) + u("Q", 0)
  yield "gguf: arrays 5,000 deep", more(b"a", 9, deep)


# Rendered with one question and its answer, of 64 tokens at most.
TEMPLATES = [
  "{{ ''.__class__.__mro__ }}",
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{{ messages.__class__ }}",
  "{{ self.__init__.__globals__ }}",
  "{{ cycler.__init__.__globals__.os.system('id') }}",
  "{{ lipsum.__globals__['os'].popen('id').read() }}",
  "{{ raise_exception.__globals__ }}",
  "{{ strftime_now.__globals__ }}",
  "{{ ''|attr('__class__') }}",
  "{{ '{0.__class__.__mro__}'.format('') }}",
  "{{ messages.append(1) }}",
  "{{ messages[0].update(content='x') }}",
  "{% set _ = messages[0].__setitem__('content','x') %}",
  "{% for i in range(10**9) %}x{% endfor %}",
  "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
  "{% for i in range(99999) %}{% for k in range(1000) %}x{% endfor %}{% endfor %}",
  "{{ 'a' * 10**10 }}",
  "{{ 'a' * 10000000 }}",
  "{{ 9**9**9 }}",
  "{{ 9**9**7 }}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "{{ 1/0 }}",
  "{{ messages[10]['content'] }}",
  "{{ messages[10].content.x }}",
  "{{ 'a' + 1 }}",
  "{{ messages[0]['content'] / 2 }}",
  "{{ none.x.y }}",
  "{{ undefinedfunction() }}",
  "{% include '/etc/passwd' %}",
  "{% import 'x' as y %}",
  "{% extends '/etc/passwd' %}",
  "{% if %}",
  "{{ unclosed",
  "{{ messages | nofilter }}",
  "{{ raise_exception('no') }}",
  "{{ messages | tojson }}",
  "{{ '%s' % messages }}",
  "{{ [1,2]|sum('x') }}",
  "{{ 'x'.join(range(3)) }}",
  "{{ messages|map(attribute='__class__')|list }}",
  "{{ int('x') }}",
  "{{ 'x'|int(base=99) }}",
  "{{ 'abc'.encode('zzz') }}",
  "{{ '\\ud800' }}",
  "",
  "{{ '' }}",
  "{% generation %}x{% endgeneration %}",
  "{% break %}",
  "{{ (1).__class__ }}",
  "{{ [].pop() }}",
  "{{ {}['a']['b'] }}",
  "{{ {}.popitem() }}",
  "{{ namespace(a=1).a.b.c }}",
  "{% for m in messages %}{{ m.content }}{% endfor %}{{ '\\0' }}",
  "{{ 'a'.center(10**9) }}",
  "{{ 'a'.zfill(10**9) }}",
  "{{ '%1000000000d' % 1 }}",
  "{{ '{:1000000000}'.format(1) }}",
  "{{ range(10)|batch(0)|list }}",
  "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l %}{% endfor %}"
  "{{ ns.l|length }}",
]
