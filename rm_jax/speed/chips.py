"""What an accelerator can do by its maker's figures: the ceilings that a plan is held against."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device, as JAX counts them.

  Attributes:
    name: of the table.
    hbm_bytes: its memory; of a TPU what libtpu leaves to programs.
    bf16_flops: operations a second of dense bfloat16 matrix products.
    hbm_bandwidth: bytes a second to and from its memory.
    link_bandwidth: bytes a second that it can send to its neighbours inside a slice or machine, all
      links together, one direction.
    network_bandwidth: bytes a second for each chip between slices, the host's network shared by its
      chips; a rule of thumb, since it depends on the machine that was ordered.
  """

  name: str
  hbm_bytes: float
  bf16_flops: float
  hbm_bandwidth: float
  link_bandwidth: float
  network_bandwidth: float


GIB = 2.0**30

# Peaks are as remembered of the pages named and were not looked up: check before they matter.
# Makers give a link's speed for both directions together; a ring sends and receives at once, so
# half of it counts here. Between slices: Google's 100 to 200 Gbit/s a host of 4 or 8 chips.
CHIPS = {
  # cloud.google.com/tpu/docs/v4: 32 GiB, 275 TFLOP/s, 1200 GB/s, 6 links, 2400 Gbit/s.
  "v4": Chip("v4", 30.75 * GIB, 275e12, 1.2e12, 150e9, 6.25e9),
  # cloud.google.com/tpu/docs/v5e: 16 GB, 197 TFLOP/s, 800 GB/s (819 before), 4 links, 1600 Gbit/s.
  "v5e": Chip("v5e", 15.75 * GIB, 197e12, 0.819e12, 100e9, 3.125e9),
  # cloud.google.com/tpu/docs/v5p: 95 GB, 459 TFLOP/s, 2765 GB/s, 6 links, 4800 Gbit/s.
  "v5p": Chip("v5p", 95.74 * GIB, 459e12, 2.765e12, 300e9, 6.25e9),
  # cloud.google.com/tpu/docs/v6e: 32 GB, 918 TFLOP/s, 1600 GB/s, 4 links, 3200 Gbit/s.
  "v6e": Chip("v6e", 31.25 * GIB, 918e12, 1.6e12, 200e9, 6.25e9),
  # nvidia.com/en-us/data-center/h100 (SXM, without sparsity): 80 GB, 989 TFLOP/s, 3.35 TB/s, NVLink
  # 900 GB/s both directions; a 400 Gbit/s network card for each GPU.
  "h100": Chip("h100", 80e9, 989e12, 3.35e12, 450e9, 50e9),
  # nvidia.com/en-us/data-center/h200: the same but 141 GB at 4.8 TB/s.
  "h200": Chip("h200", 141e9, 989e12, 4.8e12, 450e9, 50e9),
}

# Words of `Device.device_kind` -> name, the first that is found.
_KINDS = (
  ("v6", "v6e"),
  ("v5 lite", "v5e"),
  ("v5e", "v5e"),
  ("v5", "v5p"),
  ("v4", "v4"),
  ("h200", "h200"),
  ("h100", "h100"),
)


def chip_of(device: jax.Device) -> Chip | None:
  """The table's chip that a device is; None for a CPU or another one, of which nothing is known."""
  kind = device.device_kind.lower()
  return next((CHIPS[name] for word, name in _KINDS if word in kind), None)
