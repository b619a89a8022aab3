"""The families of models that are supported: one record each, listed here.

To add a family, write its record (see `family.Family`), add it to `FAMILIES`, and give the tests a
small model of it in `tests/models/families.py`.
"""

from rm_jax.pretrained.families import bert, llama, mistral, qwen2, qwen3
from rm_jax.pretrained.families.family import Family

# By the `model_type` of config.json. SmolLM2 and TinyLlama say 'llama', and are.
FAMILIES: dict[str, Family] = {
  record.model_type: record
  for record in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY, bert.FAMILY)
}
