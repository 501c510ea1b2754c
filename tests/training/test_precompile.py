"""What is read out of compiled programs, and the precompile door."""

import dataclasses
import importlib.util
import subprocess
import sys

import pytest

from bluelm_jax.sharding import chips
from bluelm_jax.training import flops
from bluelm_jax.training import memory
from bluelm_jax.training.precompile import estimate
from bluelm_jax.training.precompile import hlo
from bluelm_jax.training.precompile import report
from bluelm_jax.training.precompile import topology

_LOOP = """
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%scatter (p: bf16[64,32]) -> bf16[16,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce.9 = bf16[64,32]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %slice = bf16[16,32]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={16,32}
}

%body (c: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %c = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%c), index=1
  %all-gather-start.1 = (f32[8,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %dot.1 = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-gather-done.1 = f32[32,8]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce.2 = f32[8,8]{1,0} all-reduce(%dot.1), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[], f32[8,8]{1,0}) tuple(%i, %all-reduce.2)
}

%condition (c: (s32[], f32[8,8])) -> pred[] {
  %c = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (w: bf16[64,32], x: f32[8,8]) -> f32[8,8] {
  %w = bf16[64,32]{1,0} parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %fusion.1 = bf16[16,32]{1,0} fusion(%w), kind=kCustom, calls=%scatter
  %start = (s32[], f32[8,8]{1,0}) tuple(%zero, %x)
  %while.1 = (s32[], f32[8,8]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %end = f32[8,8]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_collectives_by_what_they_do():
  found = {c.name: c for c in hlo.collectives(_LOOP)}
  assert set(found) == {"all-gather-start.1", "all-reduce.2", "fusion.1"}
  gather, reduce, scatter = (found[name] for name in ("all-gather-start.1", "all-reduce.2", "fusion.1"))
  assert (gather.kind, gather.form, gather.overlap, gather.trips, len(gather.members), gather.size) == ("all-gather", "async", 1, 12, 4, 32 * 8 * 4)
  assert (reduce.kind, reduce.form, reduce.overlap, reduce.trips, len(reduce.members), reduce.size) == ("all-reduce", "sync", 0, 12, 2, 8 * 8 * 4)
  # A fused all-reduce of which each chip keeps a slice is a reduce-scatter.
  assert (scatter.kind, scatter.form, scatter.trips, len(scatter.members), scatter.size) == ("reduce-scatter", "sync", 1, 4, 16 * 32 * 2)


def test_a_gather_with_nothing_between_does_not_overlap():
  lines = _LOOP.splitlines()
  dot = next(i for i, line in enumerate(lines) if "%dot.1 =" in line)
  lines.insert(dot - 1, lines.pop(dot))  # before the start
  gather = next(c for c in hlo.collectives("\n".join(lines)) if c.kind == "all-gather")
  assert gather.overlap == 0


@pytest.mark.parametrize("target", ["tpu_custom_call", "mosaic_gpu_v2"])
def test_a_kernel_hides_a_transfer_as_a_product_does(target):
  dot = next(line for line in _LOOP.splitlines() if "%dot.1 =" in line)
  kernel = f'  %dot.1 = f32[8,8]{{1,0}} custom-call(%x), custom_call_target="{target}"'
  gather = next(c for c in hlo.collectives(_LOOP.replace(dot, kernel)) if c.kind == "all-gather")
  assert gather.overlap == 1


@pytest.mark.parametrize("groups,members", [
    ("replica_groups={{0,4},{1,5}}", (0, 4)),
    ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", (0, 2)),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
    ("source_target_pairs={{0,1},{1,2},{2,0}}", (2, 0)),
    ("replica_groups={}", ()),
])
def test_who_takes_part(groups, members):
  start = "replica_groups={{0,1,2,3}}"
  found = {c.name: c for c in hlo.collectives(_LOOP.replace(start, groups))}
  assert set(found["all-gather-start.1"].members) == set(members)


def test_transfers_between_hosts_take_the_network():
  chip = chips.chip("NVIDIA H100 80GB HBM3")
  gather = next(c for c in hlo.collectives(_LOOP) if c.kind == "all-gather")
  seconds = lambda ids, **changes: estimate._seconds(gather._replace(members=ids, **changes), chip) * estimate.LINKS
  assert seconds(range(8)) == pytest.approx(gather.size * 7 / 8 / chip.link)
  assert seconds(range(0, 64, 8)) == pytest.approx(gather.size * 7 / 8 / chip.network)  # one member a host
  assert seconds(range(0, 32, 4)) == pytest.approx(gather.size * 3 / 4 / (2 * chip.network))  # three quarters come over two ports
  assert seconds(range(8), kind="all-reduce") == 2 * seconds(range(8))
  assert seconds((7, 8), kind="collective-permute") == pytest.approx(gather.size / chip.network)


def _estimate(**changes):
  gib = 2**30
  memory = estimate.Memory(2 * gib, 4 * gib, 0, 3 * gib, 9 * gib, 10 * gib)
  work = flops.Flops(3e15, 1e15, 0.0, 0.0, 0.0)
  transfers = [estimate.Transfer("all-gather", "async", 32, gib, True, 0.4), estimate.Transfer("all-reduce", "sync", 1, gib, False, 0.25)]
  plain = estimate.Estimate(memory, 10, 4096, 0, work, flops.Flops(0, 0, 0, 0, 0), transfers, 5.0, 2.0, 0.25, 8, chips.Chip("a chip", 2e14, 10 * gib, 1e12, 1e11))
  return dataclasses.replace(plain, **changes)


def test_the_step_and_what_binds_it():
  found = _estimate()
  assert found.step == 5.25 and found.mfu == pytest.approx(4e15 / (5.25 * 8 * 2e14))
  assert found.binding == "kernels below the chip's peak (assumed)"
  assert _estimate(exposed=6.0).binding == "transfers that nothing hides"
  assert _estimate(traffic=20.0).binding == "memory traffic"
  assert not _estimate(memory=dataclasses.replace(found.memory, peak=11 * 2**30)).memory.fits


def test_the_report_says_estimate_and_both_pages_say_the_same(tmp_path):
  parts = report.sections(_estimate(), memory.Budget(1, 1, 0, 1, 0, 2**33, 0, 0), "a <stage>", 1.0)
  text = report.text(parts)
  assert "8.00 GiB" in text and "Roofline (estimate)" in text and "seconds: estimate" in text and "9.00 GiB" in text
  report.page(parts, tmp_path / "out.html")
  page = (tmp_path / "out.html").read_text()
  assert "a &lt;stage&gt;" in page and "src=" not in page and [p.name for p in tmp_path.iterdir()] == ["out.html"]
  assert all(cell in page for _, rows in parts for row in rows for cell in row if "<" not in cell and "'" not in cell)


def test_largest_buffers_of_an_out_of_memory_message():
  message = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G of 15.7G hbm.

  Largest program allocations in hbm:

  1. Size: 9.00G
     Operator: op_name="jit(step)/dot_general"
     Shape: f32[1024,1024]{1,0}
     ==========================

  2. Size: 4.00G
     Shape: bf16[8]{0}
"""
  assert report.largest_buffers(message) == ["9.00G  f32[1024,1024]{1,0}  jit(step)/dot_general", "4.00G  bf16[8]{0}"]


def test_chips_without_figures_are_refused():
  with pytest.raises(ValueError, match="no figures for 'TPU v2'"):
    chips.chip("TPU v2")
  assert chips.compiler_options("TPU v2") == {}


@pytest.mark.parametrize("name,words", [("v5p", "write a TPU slice"), ("h100:12", "multiple of 8"), ("h100:0", "multiple of 8"), ("gaudi:4", "is unknown")])
def test_unknown_topologies_are_refused(name, words):
  with pytest.raises(ValueError, match=words):
    topology.devices(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu")
def test_a_slice_the_compiler_does_not_know_is_refused():
  with pytest.raises(ValueError, match="is not one libtpu knows"):
    topology.devices("v5e:3x3")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu")
@pytest.mark.parametrize("rows,code,words", [(8, 0, "Roofline (estimate)"), (1 << 18, 3, "largest buffers:")])
def test_the_door_compiles_and_says_when_it_does_not_fit(rows, code, words, tmp_path):
  command = [
      sys.executable, "-m", "bluelm_jax.precompile", "--config=configs/stages/text.py:miniature", "--topology=v5e:2x2", "--config.optimizer.name=adamw",
      f"--config.data.rows={rows}", f"--report={tmp_path}/out.html"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == code, done.stderr[-2000:]
  assert words in done.stdout and (tmp_path / "out.html").exists() == (code == 0)


def test_the_door_refuses_in_one_line():
  command = [sys.executable, "-m", "bluelm_jax.precompile", "--config=configs/stages/text.py:small", "--topology=moon:2x2"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith("error: topology 'moon:2x2'") and done.stderr.count("\n") == 1
