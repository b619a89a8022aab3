"""Peak figures of accelerators by their makers: the ceilings of a plan's roofline.

Looked up on 28 November 2026. Where two pages differ, both figures are given.

  [v4]   docs.cloud.google.com/tpu/docs/v4, "TPU v4": 275 TFLOP/s, 32 GiB, 1,200 GB/s. It gives no
         link's speed: Jouppi et al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer for
         Machine Learning with Hardware Support for Embeddings" (arxiv.org/abs/2304.01433), table 4:
         6 links of 50 GB/s (400 Gbit/s each way).
  [v5e]  docs.cloud.google.com/tpu/docs/v5e, "TPU v5e": 197 TFLOP/s, 16 GB, 819 GB/s (a later
         version: 800 GiB/s, 5 % more), 4 ports, "bidirectional inter-chip interconnect (ICI)
         bandwidth (per chip)" 400 GB/s; 2 network cards of 100 Gbit/s for a host of 8.
  [v5p]  docs.cloud.google.com/tpu/docs/v5p, "TPU v5p": 459 TFLOP/s, 95 GB, 2,765 GB/s,
         bidirectional ICI 1,200 GB/s; data centre's network 50 Gbit/s a chip.
  [v6e]  docs.cloud.google.com/tpu/docs/v6e, "TPU v6e": 918 TFLOP/s, 32 GB, 1,638 GB/s, 4 ports,
         bidirectional ICI 800 GB/s; 4 network cards of 200 Gbit/s for a host of 8.
  [book] Austin et al. 2025, "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus): links
         reach a tenth less in practice, 45 GB/s each way (v4, v5e) and 90 (v5p, v6e) instead of 50
         and 100; the network of v4 is 6.25 GB/s a chip.
  [h100] nvidia.com/en-us/data-center/h100, "NVIDIA H100 GPU" (SXM): 80 GB, 3.35 TB/s, 1,979 TFLOP/s
         with sparsity, which is half of it without, NVLink 900 GB/s both directions together.
  [h200] nvidia.com/en-us/data-center/h200, "NVIDIA H200 GPU" (SXM): the same but 141 GB at
         4.8 TB/s. NVIDIA's figures were not read on its own pages but in texts that quote them:
         "How to Scale Your Model", chapter on GPUs; NVIDIA's MLPerf submission
         (mlcommons/inference_results_v4.1, H200-SXM-141GBx8: 18 NVLinks, 900 GB/s together);
         github.com/NVIDIA/nccl/issues/1264 (900 GB/s both ways are 450 one way).
"""

import dataclasses
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one device, as JAX counts devices.

  Attributes:
    name: key in `CHIPS`.
    hbm_bytes: memory; for a TPU what libtpu leaves to programs.
    bf16_flops: operations per second of dense bfloat16 matrix products.
    hbm_bandwidth: bytes per second to and from its memory.
    link_bandwidth: bytes per second that it can send to its neighbours in a slice or machine, over
      all links together, in one direction.
    network_bandwidth: bytes per second between slices for each chip: that of a host's network
      divided by the host's number of chips. It depends on the type of machine.
  """

  name: str
  hbm_bytes: float
  bf16_flops: float
  hbm_bandwidth: float
  link_bandwidth: float
  network_bandwidth: float


GIB = 2.0**30
GBIT = 1e9 / 8

# For links makers quote the sum of both directions (except [v4] above). A device sends and receives
# at the same time, and a plan counts what it sends, so that link_bandwidth is half of theirs.
CHIPS = {
  "v4": Chip("v4", 30.75 * GIB, 275e12, 1.2e12, 6 * 50e9, 6.25e9),
  "v5e": Chip("v5e", 15.75 * GIB, 197e12, 0.819e12, 400e9 / 2, 2 * 100 * GBIT / 8),
  "v5p": Chip("v5p", 95.74 * GIB, 459e12, 2.765e12, 1200e9 / 2, 50 * GBIT),
  "v6e": Chip("v6e", 31.25 * GIB, 918e12, 1.638e12, 800e9 / 2, 4 * 200 * GBIT / 8),
  # Machines with eight GPUs have one network card of 400 Gbit/s for each.
  "h100": Chip("h100", 80e9, 989e12, 3.35e12, 900e9 / 2, 400 * GBIT),
  "h200": Chip("h200", 141e9, 989e12, 4.8e12, 900e9 / 2, 400 * GBIT),
}

# Words of `Device.device_kind` -> key in `CHIPS`; the first match counts.
_KINDS = (
  ("v6", "v6e"),
  ("v6e", "v6e"),
  ("v5 lite", "v5e"),
  ("v5e", "v5e"),
  ("v5", "v5p"),
  ("v5p", "v5p"),
  ("v4", "v4"),
  ("h200", "h200"),
  ("h100", "h100"),
)
# Cards of the same names with other memory and fewer operations a second; the table has SXM ones.
_OTHERS = re.compile(r"\b(pcie|nvl)\b")


def chip_of(device: jax.Device) -> Chip | None:
  """The figures of a device's chip; None for a CPU and for chips that are not in the table."""
  kind = device.device_kind.lower()
  if _OTHERS.search(kind):
    return None
  # Whole words: 'gh200' is another chip than 'h200'.
  found = (name for words, name in _KINDS if re.search(rf"\b{words}\b", kind))
  return next((CHIPS[name] for name in found), None)
