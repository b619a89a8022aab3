"""What to change in a plan that does not fit into memory, and about how much each change saves."""

from typing import Any

from rm_jax.batch.fit import up


def advice(config: Any, report: dict[str, Any]) -> list[str]:
  """Changes to a plan that needs more memory than its chip has.

  Those that make the larger part smaller come first: the state, or the programs' temporaries.

  Args:
    config: the plan's.
    report: from `plan.plan`, without its advice.

  Returns:
    lines of text; [] if the plan fits or the chip's memory is not known.
  """
  memory = report["memory"]
  if memory["fits"] is not False:
    return []
  over = max(0, memory["total_bytes"] - memory["hbm_bytes"])
  lines = [f"does not fit: {over / 2**30:.2f} GiB a chip too much. Changes, the most useful first:"]
  parts = {"state": _state, "temporaries": _temporaries}
  sizes = {"state": memory["arguments_bytes"], "temporaries": memory["temporaries_bytes"]}
  for name in sorted(parts, key=sizes.get, reverse=True):
    lines += [f"  - {line}" for line in parts[name](config, report)]
  return lines


def _temporaries(config: Any, report: dict[str, Any]) -> list[str]:
  """Changes that make the compiled programs' temporaries (activations) smaller."""
  lines, layout, mesh = [], report["layout"], report["mesh"]
  size = f"temporaries are {report['memory']['temporaries_bytes'] / 2**30:.2f} GiB"
  if config.model.remat != "full":
    lines.append(f"{size}: model.remat=full keeps each layer's input alone")
  rows = layout["rows"] // (mesh["data"] * mesh["fsdp"])
  longest = up(config.data.max_length, 128)
  if rows > 1:
    cells = max(1, rows // 2) * layout["columns"]
    lines.append(
      f"{size} for {rows} rows of {layout['columns']} tokens: data.cells={cells} "
      "halves them, in more micro-batches"
    )
  elif config.data.pack and not config.data.row_lengths and layout["columns"] > longest:
    lines.append(
      f"{size} for a row of {layout['columns']} tokens, which holds several groups: "
      f"data.cells={layout['columns'] // 2} halves it, in more micro-batches"
    )
  else:
    smaller = "shorter data.row_lengths" if config.data.row_lengths else "a smaller data.max_length"
    lines.append(
      f"{size} for one row of {layout['columns']} tokens: {smaller}, or "
      f"mesh.tensor={2 * mesh['tensor']} to divide heads and feed-forward"
    )
  return lines


def _state(config: Any, report: dict[str, Any]) -> list[str]:
  """Changes that make parameters, optimiser state and gradients smaller on each device."""
  lines, mesh, parts = [], report["mesh"], report["memory"]["parts"]

  def saves(value: float) -> str:
    return f"saves about {value / 2**30:.2f} GiB"

  held = parts["parameters"] + parts["optimizer"] + parts["gradients"]
  copies = mesh["data"] // report["slices"]
  if copies > 1:
    fsdp = mesh["fsdp"] * copies
    lines.append(
      f"mesh data={mesh['data'] // copies},fsdp={fsdp}: {copies} copies of the state become one, "
      + saves(held * (1 - 1 / copies))
    )
  if config.optimizer.name == "adamw":
    lines.append(
      f"optimizer.name=adafactor keeps rows and columns of the moments: {saves(parts['optimizer'])}"
    )
  if not config.model.lora.rank:
    lines.append(
      "model.lora.rank=16 with model.lora.base_dtype=bfloat16: no gradients and moments of the "
      f"backbone, and it in half: {saves(held - parts['parameters'] / 2)}"
    )
  elif config.model.lora.base_dtype == "float32":
    lines.append(
      f"model.lora.base_dtype=bfloat16: the backbone in half, {saves(parts['parameters'] / 2)}"
    )
  room = 0.8 * report["memory"]["hbm_bytes"]
  chips = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
  wanted = 2 ** max(1, -int(-(held / room) // 1) - 1).bit_length()
  lines.append(f"a larger slice: fsdp over {chips * wanted} chips divides the state by {wanted}")
  return lines
