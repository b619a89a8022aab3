"""Settings and fixtures of all tests: eight CPU devices, strict rank promotion, tokenizers."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, and programs this small gain nothing from optimisation. So
# LLVM's passes are switched off, a program is compiled in one part and not in several side by side,
# and matrix products have one thread. The MLIR pipeline for fusions, which takes half of the
# remaining time, is off too; jaxlib 0.11 and later has no other pipeline and stops at the unknown
# flag. .ci/run also runs the README's commands, and these use the default flags.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false"
  + " --xla_cpu_use_fusion_emitters=false"
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)
# Lowering writes the Python lines of every operation into a program, which no test reads.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Commands start themselves again to get large pages (`experiments.startup`), which costs 2 s; a
# test's commands are too short to gain that back. The test of that start unsets this.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")

import jax
import pytest
import tokenizers
import transformers

jax.config.update("jax_num_cpu_devices", 8)
# All tests share a compilation cache, since most of a small run's time is compilation. If
# RM_JAX_TEST_CACHE names a folder, it is kept for the next run; otherwise a temporary one is made
# here and removed at the end.
_OWN = "RM_JAX_TEST_CACHE" not in os.environ
if _OWN:
  os.environ["RM_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="rm_jax_tests_")
_CACHE = os.environ["RM_JAX_TEST_CACHE"]
jax.config.update("jax_compilation_cache_dir", _CACHE)
os.environ["RM_JAX_TOKENS"] = os.path.join(_CACHE, "tokens")
# Programs that compile sooner than this are not kept: writing them takes longer than it saves. Of
# the commands that tests start all are kept, since each would compile the same small ones again.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")

CHAT = (
  "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>\n{% endfor %}"
  "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def pytest_configure(config):
  """Binds each xdist worker, and what it starts, to one core, where all get equally many.

  XLA starts a thread for each core that it may use. Two workers that both use two cores took a
  tenth more CPU time. Two workers a core use the time in which tests wait: for a process that
  starts, another host, a signal.
  """
  worker = getattr(config, "workerinput", None)
  if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    if worker["workercount"] % len(cores) == 0:
      os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})


def pytest_collection_finish(session):
  """Excludes all imported modules and collected tests from garbage collection, to save its time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Schedules neighbouring tests on one xdist worker, so that it makes a module's fixtures once.

  An idle worker takes tests from a busy one.
  """
  if config.getvalue("dist") == "load":
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
  return None


@pytest.fixture(autouse=True, scope="session")
def _on_one_cpu():
  """Compiles a network's last layer with the others, as on an accelerator and on several devices.

  On one CPU it stands apart, to be computed for the columns that the head reads alone. One layer
  more is compiled then, and tests of runs take a seventh more time. It stands apart in tests that
  use `last_layer_apart`, in all commands and in the notebooks.
  """
  from rm_jax.models import network

  with pytest.MonkeyPatch.context() as patch:
    original = network.on_one_cpu
    patch.setattr(network, "on_one_cpu", lambda: False)
    yield original


@pytest.fixture
def last_layer_apart(_on_one_cpu, monkeypatch):
  """Lets a network's last layer stand apart on one CPU, as it does outside of the tests."""
  from rm_jax.models import network

  monkeypatch.setattr(network, "on_one_cpu", _on_one_cpu)


def pytest_unconfigure(config):
  if _OWN and not hasattr(config, "workerinput"):  # Only the main process made the folder.
    shutil.rmtree(_CACHE, ignore_errors=True)


def _byte_level(specials: list[str], merges: list[tuple[str, str]] = ()) -> tokenizers.Tokenizer:
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  pieces = specials + alphabet + [a + b for a, b in merges]
  model = tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, list(merges))
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  return backend


def decoder_tokenizer(merges=(), *, bos: bool = True, pad: str = "<pad>", chat: str | None = CHAT):
  """A byte-level tokenizer: <pad> 0, <s> 1, </s> 2, then one token for each byte and merge.

  With `bos`, <s> is added in front of every text.
  """
  backend = _byte_level(["<pad>", "<s>", "</s>"], merges)
  if bos:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", 1)]
    )
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token=pad
  )
  fast.chat_template = chat
  return fast


def encoder_tokenizer():
  """A byte-level tokenizer with BERT's pair encoding: <pad> 0, [CLS] 1, [SEP] 2."""
  backend = _byte_level(["<pad>", "[CLS]", "[SEP]"])
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    cls_token="[CLS]",
    sep_token="[SEP]",
    pad_token="<pad>",
    model_input_names=["input_ids", "token_type_ids", "attention_mask"],
  )


LLAMA = {
  "model_type": "llama",
  "vocab_size": 300,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 512,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
BERT = {
  "model_type": "bert",
  "vocab_size": 300,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "max_position_embeddings": 256,
  "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
  """A folder with a small Llama's config.json and a byte tokenizer."""
  return _folder(tmp_path_factory.mktemp("llama"), LLAMA, decoder_tokenizer())


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
  """A folder with a small BERT's config.json and a byte tokenizer."""
  return _folder(tmp_path_factory.mktemp("bert"), BERT, encoder_tokenizer())


def _folder(path, config, tokenizer):
  import json

  tokenizer.save_pretrained(path)
  (path / "config.json").write_text(json.dumps(config))
  return path
