"""The families of models that are supported: one record each, listed here.

To add a family, write its record (see `Family` in family.py), add its module here, and give the
tests a small model of it in `tests/models/families.py`.
"""

from rm_jax.pretrained.families import bert, gemma2, llama, mistral, qwen2, qwen3
from rm_jax.pretrained.families.family import Family

# By the `model_type` of config.json. SmolLM2 and TinyLlama say 'llama', and are.
FAMILIES: dict[str, Family] = {
  module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, qwen2, qwen3, gemma2, bert)
}
