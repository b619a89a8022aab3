"""GGUF files whose counts exceed their content are refused before anything is allocated."""

import struct
import tracemalloc

import gguf as gguf_package
import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.pretrained import gguf, gguf_file
from tests.pretrained import test_gguf, test_gguf_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """A small Llama with a tokenizer: (path, its bytes)."""
  keys = test_gguf_tokenizer.tokenizer_keys(test_gguf_tokenizer.trained("smollm"), "smollm")
  keys |= {"llama.vocab_size": test_gguf.VOCAB, "tokenizer.chat_template": "{{ messages }}"}
  path = test_gguf.write_model(tmp_path_factory.mktemp("gguf"), "llama", keys)
  return path, path.read_bytes()


def replaced(data, key, offset, value):
  """The file with bytes replaced, `offset` after a key's name; the first four are its type."""
  at = data.index(key.encode()) + len(key) + offset
  return data[:at] + value + data[at + len(value) :]


def u32(value):
  return struct.pack("<I", value)


def u64(value):
  return struct.pack("<Q", value)


def test_all_is_read_as_the_gguf_package_reads_it(good):
  path, _ = good
  theirs, ours = gguf_package.GGUFReader(path), gguf_file.File(path)
  fields = {name: f for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
  assert ours.key_names() == list(fields)
  for name, field in fields.items():
    assert ours.get(name) == field.contents(), name
    assert name in ours
  assert ours.get("none") is None
  assert ours.get("none", 3) == 3
  assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
  for tensor in theirs.tensors:
    np.testing.assert_array_equal(ours.data(tensor.name), tensor.data)
    assert ours.tensors[tensor.name].kind == tensor.tensor_type


@pytest.mark.parametrize("key", ["tokens", "token_type", "merges"])
@pytest.mark.parametrize("count", [lambda n: n + 1, lambda n: n ^ 1 << 40, lambda n: n * 256])
def test_a_count_that_is_wrong_takes_no_memory(good, tmp_path, key, count):
  path, data = good
  at = data.index(f"tokenizer.ggml.{key}".encode()) + len(f"tokenizer.ggml.{key}") + 8
  wrong = count(struct.unpack("<Q", data[at : at + 8])[0])
  path = tmp_path / "m.gguf"
  path.write_bytes(data[:at] + u64(wrong) + data[at + 8 :])
  tracemalloc.start()
  with pytest.raises(ValueError, match=r"cannot be read as GGUF \(.*Was it cut short"):
    gguf.read(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**24


HEADER = {
  "tensors": lambda d: d[:8] + u64(2**62) + d[16:],
  "keys": lambda d: d[:16] + u64(2**62) + d[24:],
  "one key more": lambda d: d[:16] + u64(struct.unpack("<Q", d[16:24])[0] + 1) + d[24:],
  "one tensor more": lambda d: d[:8] + u64(struct.unpack("<Q", d[8:16])[0] + 1) + d[16:],
  "one tensor less": lambda d: d[:8] + u64(struct.unpack("<Q", d[8:16])[0] - 1) + d[16:],
  "a key's length": lambda d: d[:24] + u64(2**60) + d[32:],
  "a type": lambda d: replaced(d, "general.architecture", 0, u32(77)),
  "an array of arrays": lambda d: replaced(d, "tokenizer.ggml.tokens", 4, u32(9)),
  "dimensions": lambda d: replaced(d, "token_embd.weight", 0, u32(2**31)),
  "a dimension": lambda d: replaced(d, "token_embd.weight", 4, u64(2**60)),
  "how it is stored": lambda d: replaced(d, "token_embd.weight", 20, u32(999)),
  "blocks of another size": lambda d: replaced(d, "token_embd.weight", 20, u32(12)),
  "an offset": lambda d: replaced(d, "token_embd.weight", 24, u64(2**63)),
  "another offset": lambda d: replaced(d, "token_embd.weight", 24, u64(32)),
  "the version": lambda d: d[:4] + struct.pack(">I", 3) + d[8:],
  "a key that stands twice": lambda d: d.replace(b".bos_token_id", b".eos_token_id"),
  "nothing": lambda d: b"",
  "a byte more in the data": lambda d: d[:-5000] + b"\0" + d[-5000:],
  "32 bytes more in the data": lambda d: d[:-5000] + bytes(32) + d[-5000:],
  "a byte less": lambda d: d[:-5000] + d[-4999:],
  "bytes behind the last tensor": lambda d: d + bytes(64),
}


@pytest.mark.parametrize("what", HEADER)
def test_what_does_not_fit_is_one_error(good, tmp_path, what):
  path = tmp_path / "m.gguf"
  path.write_bytes(HEADER[what](good[1]))
  with pytest.raises(ValueError, match=r"cannot be read as GGUF \(") as error:
    gguf.read(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("dims", [0, 5])
def test_a_tensor_has_one_to_four_dimensions(tmp_path, dims):
  """Of a file that is whole otherwise."""
  tensors = test_gguf.converted("llama", test_gguf.hf_tensors("llama"))
  tensors["token_embd.weight"] = np.ones((1,) * dims, np.float32)
  path = test_gguf.write_model(tmp_path, "llama", tensors=tensors)
  with pytest.raises(InputError, match=f"embd.weight has {dims} dimensions; expected 1 to 4"):
    gguf.read(path)


def test_a_type_that_there_is_none_of_is_named(good, tmp_path):
  path = tmp_path / "m.gguf"
  path.write_bytes(HEADER["a type"](good[1]))
  with pytest.raises(ValueError, match="is of type 77, which is none"):
    gguf.read(path)


def test_every_beginning_of_a_file_is_refused(good, tmp_path):
  path = tmp_path / "m.gguf"
  ends = [*range(0, 200), *range(200, len(good[1]), 997), len(good[1]) - 1]
  for end in ends:
    path.write_bytes(good[1][:end])
    with pytest.raises(ValueError, match="cannot be read as GGUF"):
      gguf.read(path)


@pytest.mark.parametrize("align", [32, 64, 4096])
def test_alignment(tmp_path, align):
  path = tmp_path / "m.gguf"
  writer = gguf_package.GGUFWriter(path, "llama")
  writer.add_custom_alignment(align)
  arrays = {f"t{i}": np.arange(i + 1, dtype=np.float32) for i in range(3)}
  for name, array in arrays.items():
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  for data in (path.read_bytes(), path.read_bytes()[: -(align - 12)]):  # padded behind, or not
    path.write_bytes(data)
    file = gguf_file.File(path)
    for name, array in arrays.items():
      np.testing.assert_array_equal(file.data(name), array)
  for wrong in (0, 3):
    path.write_bytes(replaced(data, "general.alignment", 4, u32(wrong)))
    with pytest.raises(ValueError, match="expected a power of two"):
      gguf_file.File(path)


@pytest.mark.parametrize("layers", [3 * 10**7, 2**31, 200])
def test_more_layers_than_tensors(good, tmp_path, layers):
  path = tmp_path / "m.gguf"
  path.write_bytes(replaced(good[1], "llama.block_count", 4, u32(layers)))
  with pytest.raises(ValueError, match=rf"llama\.block_count is {layers} and the file has 20"):
    gguf.read(path)


def test_keys_of_another_type(tmp_path):
  for more, message in (
    ({"split.count": "x"}, "one of 'x' parts"),
    ({"split.count": [1]}, r"one of \[1\] parts"),
    ({"llama.embedding_length": [7] * 500}, r"embedding_length is \[7, 7, .* \.\.\., expected one"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan, expected one float"),
    ({"llama.rope.freq_base": float("inf")}, "is inf, expected one float"),
  ):
    with pytest.raises(ValueError, match=message):
      gguf.read(test_gguf.write_model(tmp_path, "llama", more))


def test_values_that_cannot_be_decoded(good, tmp_path):
  path = tmp_path / "m.gguf"
  path.write_bytes(replaced(good[1], "general.architecture", 12, b"\xff"))
  with pytest.raises(InputError, match=r"m\.gguf: key general\.architecture: not UTF-8"):
    gguf.read(path)
  path.write_bytes(replaced(good[1], "general.architecture", 0, u32(4)))
  with pytest.raises(ValueError, match="cannot be read as GGUF"):
    gguf.read(path)
  test_gguf.write(path, "llama", {"tokenizer.ggml.add_bos_token": True})
  path.write_bytes(replaced(path.read_bytes(), "add_bos_token", 4, b"\x07"))
  with pytest.raises(InputError, match=r"m\.gguf: key .*add_bos_token: a bool is stored as 7"):
    gguf_file.File(path).get("tokenizer.ggml.add_bos_token")


def test_a_tokenizer_of_another_type(tmp_path):
  good = test_gguf_tokenizer.tokenizer_keys(test_gguf_tokenizer.trained("smollm"), "smollm")
  tokens = good["tokenizer.ggml.tokens"]
  for key, value, message in (
    ("tokens", [1, 2, 3], r"tokens has '\[1\]', expected a list of str"),
    ("tokens", "abc", "expected a list of str"),
    ("token_type", ["a"] * len(tokens), "expected a list of int"),
    ("merges", [1], "expected a list of str"),
    ("bos_token_id", "x", "bos_token_id has .*expected int"),
    ("bos_token_id", 10**6, "bos_token_id is 1000000"),
    ("add_bos_token", 1, "add_bos_token has .*expected bool"),
    ("tokens", [*tokens[:-1], "x" * 5000], "has 5000 characters; expected at most 1024"),
  ):
    path = test_gguf.write(tmp_path / "t.gguf", "llama", {**good, f"tokenizer.ggml.{key}": value})
    with pytest.raises(ValueError, match=message):
      gguf.tokenizer(path)
  path = test_gguf.write(tmp_path / "t.gguf", "llama", {**good, "tokenizer.chat_template": 5})
  with pytest.raises(ValueError, match=r"chat_template has '\[5\]', expected str"):
    gguf.tokenizer(path)
