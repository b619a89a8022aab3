"""Eight CPU devices for every test, strict promotion of ranks, and small tokenizers made here."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, and programs this small gain nothing by LLVM's passes, nor
# by the fusions' own MLIR pipeline, which is half of what is left (jaxlib from 0.11 has no other,
# and stops at a flag that it does not know). The README's commands, which .ci/run runs too, have
# them all.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0"
  + " --xla_cpu_use_fusion_emitters=false"
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import jax
import pytest
import tokenizers
import transformers

jax.config.update("jax_num_cpu_devices", 8)
# Runs of the same shapes compile once for all tests: most of a small run is compilation.
# A folder that RM_JAX_TEST_CACHE names stays for the next run; one made here goes with this one.
_OWN = "RM_JAX_TEST_CACHE" not in os.environ
if _OWN:
  os.environ["RM_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="rm_jax_tests_")
_CACHE = os.environ["RM_JAX_TEST_CACHE"]
jax.config.update("jax_compilation_cache_dir", _CACHE)
os.environ["RM_JAX_TOKENS"] = os.path.join(_CACHE, "tokens")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")

CHAT = (
  "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>\n{% endfor %}"
  "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def pytest_collection_finish(session):
  """What was imported and collected stays, and is not looked through for garbage ever again."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Neighbours stay on one worker, which makes a module's fixtures once, until another is idle."""
  if config.getvalue("dist") == "load":
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
  return None


def pytest_unconfigure(config):
  if _OWN and not hasattr(config, "workerinput"):  # the one process that made it
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
  """A byte-level tokenizer: <pad> 0, <s> 1, </s> 2, then a token a byte; BOS added by default."""
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
