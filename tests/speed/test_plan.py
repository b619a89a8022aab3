"""Plans: reading compiled text and mesh flags, errors, and the figures of the real step."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rm_jax.batch import layout
from rm_jax.batch.group import Group
from rm_jax.batch.layout import need, pack
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import count_slices, make_mesh, parse_mesh
from rm_jax.pretrained.config import backbone_config
from rm_jax.reward.architecture import build_network, planned_architecture
from rm_jax.reward.setup import build_model
from rm_jax.speed import chips
from rm_jax.speed import plan as plans
from rm_jax.speed.abstract import (
  abstract_batch,
  lower_step,
  planned_layout,
  topology_devices,
)
from rm_jax.speed.advice import advice
from rm_jax.speed.chips import CHIPS, chip_of
from rm_jax.speed.flops import Work, forward_flops
from rm_jax.speed.hlo import Program, arrays_of, replica_groups
from rm_jax.speed.memory import main_memory_bytes
from rm_jax.speed.plan import plan, table
from rm_jax.train.datasets import load_data
from rm_jax.train.run import Run, abstract_state, make_packing
from rm_jax.train.text_penalty import HEAD
from rm_jax.workdir.folder import resolve
from tests.processes import ROOT, command
from tests.train.runs import small_config
from tests.train.test_text_penalty import language_model

TEXT = """\
HloModule jit_step, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%gather.1 (p: bf16[1,8]) -> bf16[4,8] {
  %p = bf16[1,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}
}

%gather.2 (p: bf16[1,8]) -> bf16[4,8] {
  %p = bf16[1,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[4,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, \
dimensions={0}
}

%read (stack: bf16[5,1,8], i: s32[]) -> bf16[1,8] {
  %stack = bf16[5,1,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,1,8]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,1,8}
  ROOT %flat = bf16[1,8]{1,0} bitcast(%one)
}

%body (state: (s32[], bf16[5,1,8])) -> (s32[], bf16[5,1,8]) {
  %state = (s32[], bf16[5,1,8]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %w = bf16[5,1,8]{2,1,0} get-tuple-element(%state), index=1
  %x = bf16[1,8]{1,0} fusion(%w, %n), kind=kLoop, calls=%read
  %start = bf16[4,8]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%gather.1
  %done = bf16[4,8]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%gather.2
  %two = s32[] constant(2)
  %next = s32[] add(%n, %two)
  ROOT %out = (s32[], bf16[5,1,8]{2,1,0}) tuple(%next, %w)
}

%condition (state: (s32[], bf16[5,1,8])) -> pred[] {
  %state = (s32[], bf16[5,1,8]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(9)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (w: bf16[5,1,8], g: f32[6]) -> f32[6] {
  %w = bf16[5,1,8]{2,1,0} parameter(0)
  %g = f32[6]{0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[5,1,8]{2,1,0}) tuple(%zero, %w)
  %loop = (s32[], bf16[5,1,8]{2,1,0}) while(%start), condition=%condition, body=%body
  %noted = (s32[], bf16[5,1,8]{2,1,0}) while(%loop), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %reduce = f32[6]{0} all-reduce-start(%g), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), \
to_apply=%add
  %call = f32[6]{0} custom-call(%g), custom_call_target="tpu_custom_call"
  ROOT %end = f32[6]{0} all-reduce-done(%reduce)
}
"""


def test_collectives_of_a_text():
  program = Program(TEXT, devices=4, slices=2)
  gather, reduce = sorted(program.collectives(), key=lambda c: c.kind)
  assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 5 + 3, 2 * 4 * 8)
  assert gather.wire_bytes == 64 * 3 / 4
  assert (
    gather.network_bytes == 64 * (1 / 2) / 2
  )  # between two slices, shared by the two devices of each
  assert (reduce.kind, reduce.times, reduce.bytes) == ("all-reduce", 1, 4 * 6)
  assert reduce.wire_bytes == 24 * 2 * 1 / 2
  assert reduce.network_bytes == 24 * 2 * 1 / 2  # devices 0 and 2, 1 and 3
  assert program.kernels() == {"tpu_custom_call": 1}


def test_bytes_of_a_text():
  # One iteration reads a slice of the stack and writes it, compares and adds; the gathered array
  # stays on the chip. Outside the loop the custom call reads and writes f32[6], and the all-reduce
  # writes its sum.
  turn = (16 + 4 + 16) + (4 + 4 + 1) + (4 + 4 + 4)
  assert main_memory_bytes(Program(TEXT)) == 8 * turn + 2 * 24 + 24


def test_bytes_of_what_is_on_its_way():
  text = """\
%start (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8], s32[2]) {
  %p = bf16[1,8]{1,0} parameter(0)
  %gather = bf16[4,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %call = (bf16[1,8]{1,0}, bf16[4,8]{1,0}, s32[2]{0:S(4)}) custom-call(%gather), \
custom_call_target="AsyncCollectiveStart"
}

ENTRY %main (p: bf16[1,8], x: f32[32,8]) -> f32[8,8] {
  %p = bf16[1,8]{1,0} parameter(0)
  %x = f32[32,8]{1,0} parameter(1)
  %begun = (bf16[1,8]{1,0}, bf16[4,8]{1,0}, s32[2]{0:S(4)}) fusion(%p), kind=kCustom, calls=%start
  %slice = ((f32[32,8]{1,0}), f32[8,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), \
slice={[8:16], [0:8]}
  ROOT %out = f32[8,8]{1,0:S(1)} slice-done(%slice)
}
"""
  # The all-gather's output is written once, and of the sliced array only the slice is read.
  assert main_memory_bytes(Program(text, devices=4)) == 64 + 4 * 8 * 8


def test_shapes_and_groups_as_xla_writes_them():
  one, two, bit = arrays_of("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, pred[4]{0})")
  assert (one.bytes, one.main, two.bytes, two.main, bit.bytes, bit.main) == (
    12,
    False,
    4,
    False,
    4,
    True,
  )
  rows = [[0, 2], [1, 3]]
  for text in (
    "replica_groups={{0,2},{1,3}}",
    "replica_groups=[2,2]<=[2,2]T(1,0)",
    "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}",
  ):
    np.testing.assert_array_equal(replica_groups(text, 4), rows)
  np.testing.assert_array_equal(replica_groups("replica_groups={}", 3), [[0, 1, 2]])


def test_words_of_a_mesh():
  assert parse_mesh("fsdp=256") == {"data": 1, "fsdp": 256, "tensor": 1}
  assert parse_mesh("data=-1, tensor=2") == {"data": -1, "fsdp": 1, "tensor": 2}
  for text in ("fsdp", "fsdp=two", "expert=2", "fsdp=2,fsdp=2"):
    with pytest.raises(ValueError, match="write axis=devices"):
      parse_mesh(text)


class Device:
  """The attributes of a device that `make_mesh` reads."""

  def __init__(self, number, slices, platform="tpu"):
    self.id, self.slice_index, self.platform = number, number // (8 // slices), platform
    self.device_kind, self.process_index = "else", 0


def test_only_data_goes_between_slices():
  devices = [Device(i, 2, "gpu") for i in (5, 1, 0, 4, 7, 2, 3, 6)]
  assert count_slices(devices) == 2
  mesh = make_mesh({"data": -1, "fsdp": 2, "tensor": 1}, devices)
  where = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  assert where.shape == (4, 2, 1)
  np.testing.assert_array_equal(where[:, :, 0], [[0, 0], [0, 0], [1, 1], [1, 1]])
  with pytest.raises(ValueError, match=r"mesh\.data is 1 and the devices are 2 slices"):
    make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, [Device(i, 2) for i in range(8)])
  # On GPUs a 'slice' is a machine, and parameters may be sharded across machines.
  assert make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, devices).shape["fsdp"] == 8


@pytest.mark.slow
def test_the_abstract_state_and_batch_are_those_of_a_run(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=2)
  config.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  config.loss.pair = "davidson"
  config.model.members = 2
  with open(config.data.train) as file, (tmp_path / "train.jsonl").open("w") as out:
    for i, line in enumerate(file):
      row = json.loads(line) | {"margin": 0.5, "tie": i % 4 == 0}
      out.write(json.dumps(row) + "\n")
  config.data.train = str(tmp_path / "train.jsonl")
  mesh, model = make_mesh(config.mesh), build_model(config)
  data, _, _, _ = load_data(config, model)
  run = Run(resolve(config, len(data.groups)), mesh, model, data)
  own = jax.eval_shape(lambda: run.objective.init_params(jax.random.key(0)))
  network = build_network(config, model.config)
  from rm_jax.train.optimizer import make_optimizer

  optimizer = make_optimizer(config.optimizer, run.schedule)
  planned = abstract_state(config, network, own, optimizer, mesh, sources=len(run.sources))

  def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

  assert jax.tree.structure(planned) == jax.tree.structure(run.state)
  assert described(planned) == described(run.state)
  assert run.fields == {"pair_margin", "pairs", "ties"}
  (micro, *_), ((batch, _), *_) = run.micros(0), run.prepare(0)
  planned = abstract_batch(config, network, mesh, micro.shape, needs=run.fields)
  assert jax.tree.structure(planned) == jax.tree.structure(batch)
  assert described(planned) == described(batch)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_head_of_a_text_loss_is_in_the_plan(tied, llama_folder, tmp_path):
  path = language_model(llama_folder, tmp_path, tied=tied, own=not tied)
  config = small_config(llama_folder, steps=1)
  config.model.config, config.model.tokenizer, config.model.pretrained = "", "", str(path)
  config.loss.text_sft = 0.5
  config.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  mesh, model = make_mesh(config.mesh), build_model(config)
  config = resolve(config, 8)
  run = Run(config, mesh, model, load_data(config, model).train)
  layout = planned_layout(config, model.network, mesh, tokens=64, marks=2)
  _, planned, _ = lower_step(config, model.network, mesh, layout)

  def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

  assert described(planned) == described(run.state)
  assert (HEAD in planned.params) is not tied


def test_a_step_is_laid_out_whole(llama_folder):
  config = small_config(llama_folder, steps=1)
  config.data.batch_groups, config.data.max_length, config.data.cells = 100, 512, 1024
  config.data.row_lengths = ()
  mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
  network = build_network(config, planned_architecture(config))
  layout = planned_layout(config, network, mesh, tokens=128, marks=2)
  assert (layout.shape.rows, layout.shape.columns, layout.shape.groups) == (8, 1024, 8)
  assert layout.shape.windows == ((512, 2),)
  assert layout.micros == 2
  assert layout.shape.rows * layout.shape.groups * layout.micros >= 100
  # Half of the columns are the prompt; two responses of 32 see it and themselves.
  square = 64 * 65 // 2 + 2 * (32 * 64 + 32 * 33 // 2)
  assert (layout.work.tokens, layout.work.visible) == (100 * 128, 100 * square)
  # For a kernel each response has its own window, with its own copy of the prompt.
  network = dataclasses.replace(network, attention="splash")
  other = planned_layout(config, network, mesh, tokens=128, marks=2)
  assert (other.shape.windows, other.shape.copies) == (((128, 16),), 2)
  assert (other.micros, other.work) == (layout.micros, layout.work)


@pytest.mark.parametrize(
  ("rows", "tokens", "step", "packed"),
  [
    ((192,), 96, 16, True),
    ((192,), 64, 16, True),  # of six rows the last holds one group
    ((200,), 96, 16, True),
    ((64, 128), 48, 10, True),
    ((64, 512, 128), 48, 2, True),  # the shortest row that holds them
    ((192,), 96, 16, False),
  ],
)
def test_rows_of_given_lengths_are_planned_as_they_run(llama_folder, rows, tokens, step, packed):
  """Against the shapes that a run packs groups of these sizes into."""
  config = small_config(llama_folder, steps=1)
  config.data.batch_groups, config.data.row_lengths, config.data.pack = step, rows, packed
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  network = build_network(config, planned_architecture(config))
  planned = planned_layout(config, network, mesh, tokens=tokens, marks=2)
  ids = np.arange(1, tokens * 3 // 4 + 1, dtype=np.int32)
  two, ends = np.arange(2, dtype=np.int32), np.full(2, len(ids) - 1, np.int32)
  group = Group((ids, ids), tokens // 2, ends, two, np.float32([1, 0]), ends - tokens // 2 + 1)
  packing = make_packing(config, network, mesh)
  needs = [need(group, packing)] * step
  micros = pack(range(step), needs, layout.plan([group] * step, step, packing))
  (shape,) = {micro.shape for micro in micros}
  assert planned.micros == len(micros)
  assert (planned.shape.rows, planned.shape.columns) == (shape.rows, shape.columns)
  assert (planned.shape.windows, planned.shape.copies) == (shape.windows, shape.copies)
  assert planned.shape.groups == max(len(row) for micro in micros for row in micro.rows)
  with pytest.raises(InputError, match=f"no row for a group of {max(rows) + 1} tokens"):
    planned_layout(config, network, mesh, tokens=max(rows) + 1, marks=2)


def test_a_loss_that_needs_a_margin_has_one_in_the_plan(llama_folder):
  config = small_config(llama_folder, steps=1)
  config.loss.pair = "scaled_logistic"
  config.optimizer.warmup_steps = 0
  mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
  network = build_network(config, planned_architecture(config))
  layout = planned_layout(config, network, mesh, tokens=64, marks=2)
  _, _, batch = lower_step(config, network, mesh, layout)
  shape = layout.shape
  assert batch.pair_margin.shape == (shape.rows, shape.groups, 2, 2)


def test_the_forward_pass_of_decorrelation_is_counted(llama_folder, monkeypatch):
  def executed(decorrelation):
    config = small_config(llama_folder, steps=1)
    config.optimizer.warmup_steps = 0
    config.loss.decorrelation = decorrelation
    # Nothing is compiled: XLA is said to refuse what it is given.
    monkeypatch.setattr(plans, "_compile", lambda lowered: ({}, {}, dict.fromkeys(lowered, 1.0)))
    return plan(config, topology="local")["step"]["executed_flops"]  # 0 = rows of 64

  config = small_config(llama_folder, steps=1)
  mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
  network = build_network(config, planned_architecture(config))
  layout = planned_layout(config, network, mesh, tokens=64, marks=2)
  parts = plans.executed_flops(network, layout)
  shape, c = layout.shape, network.backbone
  ((length, count),) = shape.windows
  what = Work(shape.rows * shape.columns, shape.rows * count * length * (length + 1) // 2)
  assert parts["moments"] == forward_flops(c, c.layers, what)
  # Layers whose output is kept are not run.
  some = dataclasses.replace(network, frozen=1)
  runs, kept = (plans.executed_flops(some, layout, kept=kept) for kept in (False, True))
  for name in ("accumulate", "moments"):
    assert runs[name] - kept[name] == pytest.approx(forward_flops(c, 1, what))
  assert executed(0.0) == parts["accumulate"] / 8 * layout.micros
  assert executed(0.1) == sum(x / 8 for x in parts.values()) * layout.micros
  # It takes its time in the roofline, too.
  nothing = {"bytes": 0.0, "collectives": {}}
  chip = CHIPS["v5e"]
  options = (layout, network, chip, 0, 8)
  traffic = dict.fromkeys(("accumulate", "apply", "moments"), nothing)
  roof = plans._roofline(traffic, parts, *options)
  peak = chip.bf16_flops / 6
  assert roof["step_seconds"] == pytest.approx(layout.micros * sum(parts.values()) / peak)


@pytest.mark.slow
def test_the_local_plan_of_the_command(llama_folder, tmp_path):
  output = tmp_path / "plan.json"
  code, out, err = command(
    "plan",
    "--config=configs/base.py",
    f"--output={output}",
    "--topology=local",
    "--mesh=data=2,fsdp=4",
    f"--config.model.config={llama_folder / 'config.json'}",
    "--config.data.max_length=128",
    "--config.train.steps=10",
    devices=8,
  ).finish()
  assert code == 0, err
  report = json.loads(output.read_text())
  assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
  assert report["memory"]["fits"] is None  # a CPU is not in the table of chips
  assert report["memory"]["temporaries_bytes"] > 0
  parts = report["memory"]["parts"]
  assert parts["gradients"] == parts["parameters"]
  assert report["memory"]["arguments_bytes"] >= sum(parts.values())
  assert report["step"]["executed_flops"] >= report["step"]["model_flops"] > 0
  assert report["step"]["collective_bytes"] > 0
  assert report["whole_stacks_gathered"] == []
  assert "memory a chip" in out
  assert "attention: xla" in out


@pytest.mark.parametrize(
  ("topology", "slices", "message"),
  [("local", 2, "--slices=2"), ("nonsense:2", 1, "--topology=nonsense:2")],
)
def test_topologies_that_are_not_there(topology, slices, message):
  with pytest.raises(ValueError, match=message):
    topology_devices(topology, slices)


def test_advice_names_what_is_largest(llama_folder):
  config = small_config(llama_folder, steps=1)
  gib = 2**30
  parts = {"parameters": 8 * gib, "optimizer": 16 * gib, "gradients": 8 * gib, "batches": 0}
  memory = {
    "arguments_bytes": 32 * gib,
    "temporaries_bytes": gib,
    "total_bytes": 33 * gib,
    "hbm_bytes": 16 * gib,
    "fits": False,
    "parts": parts,
  }
  report = {
    "memory": memory,
    "mesh": {"data": 2, "fsdp": 4, "tensor": 1},
    "layout": {"rows": 16, "columns": 512},
    "slices": 1,
  }
  lines = advice(config, report)
  assert "17.00 GiB a chip too much" in lines[0]
  assert "data=1,fsdp=8" in lines[1]
  assert "saves about 16.00 GiB" in lines[1]
  assert any("adafactor" in line for line in lines)
  # One long row of several groups is not made shorter by shorter texts.
  long, config.data.row_lengths = {"rows": 8, "columns": 16384}, ()
  lines = advice(config, report | {"layout": long})
  assert any("data.cells=8192 halves it" in line for line in lines)
  memory |= {"arguments_bytes": gib, "temporaries_bytes": 32 * gib}
  lines = advice(config, report)
  assert "model.remat=full" in lines[1]
  assert "data.cells=512" in lines[2]
  assert advice(config, report | {"memory": memory | {"fits": True}}) == []


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("qwen3_0.6b", 0.596e9),
    ("qwen3_1.7b", 1.721e9),
    ("qwen3_8b", 7.568e9),
    ("llama3.1_8b", 7.505e9),
    ("llama3.1_70b", 69.503e9),
  ],
)
def test_architectures_have_their_parameters(name, count):
  """The published numbers, without an output embedding that is not tied to the input's."""
  hf = json.loads((ROOT / "configs" / "architectures" / f"{name}.json").read_text())
  shapes = flatten_dict(Network(backbone_config(hf), HeadConfig()).abstract(), sep="/")
  found = sum(math.prod(x.shape) for x in shapes.values())
  assert found == pytest.approx(count, rel=1e-3)


TOY = """
import json, sys
from configs.base import get_config
from rm_jax.speed.memory import main_memory_bytes
from rm_jax.speed.plan import plan, table
c = get_config()
c.model.config, c.model.layers = "configs/architectures/qwen3_0.6b.json", 3
c.model.dtype, c.model.remat = "bfloat16", "full"
c.data.batch_groups, c.data.max_length, c.data.cells = 16, 256, 256
c.train.steps, c.optimizer.warmup_steps = 10, 1
print(json.dumps(plan(c, topology="v5e:2x4", mesh="data=2,fsdp=2", slices=SLICES)))
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_plan_for_a_tpu_that_is_not_there():
  # In a process of its own, since libtpu does not load next to these tests' CPU devices.
  environment = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
  import os

  code = TOY.replace("data=2,fsdp=2", "data=2,fsdp=8").replace("SLICES", "2")
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout.splitlines()[-1])
  assert (report["slices"], report["mesh"]["data"], report["mesh"]["fsdp"]) == (2, 2, 8)
  assert report["memory"]["fits"]
  assert report["whole_stacks_gathered"] == []
  # One kernel forward, one again for remat 'full', and one backward; more if XLA peels the loop.
  assert report["attention"]["backend"] == "splash"
  assert report["attention"]["custom_calls"] == report["kernels"]["tpu_custom_call"] >= 3
  assert report["step"]["network_bytes"] > 0
  assert 0 < report["roofline"]["mfu"] < 1
  assert "fits" in table(report)


def test_chips_are_known_by_their_names():
  for kind, name in (
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v5p", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU v4", "v4"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA H100 80GB HBM3", "h100"),
  ):
    device = Device(0, 1)
    device.device_kind = kind
    assert chip_of(device) is CHIPS[name]
  for kind in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA GB200"):
    device = Device(0, 1)
    device.device_kind = kind
    assert chip_of(device) is None, kind
  assert chip_of(jax.devices()[0]) is None


def test_chips_have_the_figures_of_the_pages_cited():
  # As Google's and NVIDIA's pages print them: TFLOP/s; GB/s of memory; GB/s of all links, both
  # directions together, of which a device sends half; (Gbit/s of a network, devices that share it).
  published = {
    "v4": (275, 1200, 2 * 6 * 50, None),  # the page has no links: 6 of 50 GB/s, Jouppi et al. 2023
    "v5e": (197, 819, 400, (2 * 100, 8)),
    "v5p": (459, 2765, 1200, (50, 1)),
    "v6e": (918, 1638, 800, (4 * 200, 8)),
    "h100": (989, 3350, 900, (400, 1)),
    "h200": (989, 4800, 900, (400, 1)),
  }
  assert set(published) == set(CHIPS)
  for name, (tflops, memory, links, network) in published.items():
    chip = CHIPS[name]
    assert chip.bf16_flops == tflops * 1e12, name
    assert chip.hbm_bandwidth == memory * 1e9, name
    assert chip.link_bandwidth == links * 1e9 / 2, name
    if network:
      assert chip.network_bandwidth == network[0] * 1e9 / 8 / network[1], name
    assert chips.__doc__.count(f"[{name}]") == 1  # each is cited


def test_an_unknown_field_of_the_plan_is_refused(llama_folder):
  config = small_config(llama_folder, steps=1)
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    plan(config, topology="local", mesh="fsdp=3")
  with pytest.raises(InputError, match=r"--kind=attributes and model\.attributes is empty"):
    plan(config, topology="local", kind="attributes")
  config.model.config = ""
  with pytest.raises(ValueError, match="found neither"):
    plan(config, topology="local")
