"""Losses over a vocabulary of 100,096 in chunks against the plain forms: memory by the compilers, and time on this CPU.

  python -m tests.bench.losses     # prints markdown tables
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.kernels import chunked_losses
from bluelm_jax.kernels.cross_entropy import token_log_probs
from bluelm_jax.training.precompile import topology
from tests.bench import machine

VOCABULARY = 100_096
CHUNKS = (1, 4, 16)
TARGET = "v5e:2x2"


def plain_cross_entropy(x, table, targets):
  return -token_log_probs(x @ table, targets)


def plain_distillation(x, table, targets, teacher_x, teacher_table):
  """As one would write it: half of either, by log_softmax."""
  student, teacher = (jax.nn.log_softmax((a @ b).astype(jnp.float32)) for a, b in ((x, table), (teacher_x, teacher_table)))
  picked = jnp.take_along_axis(student, targets[..., None], -1)[..., 0]
  return -0.5 * picked + 0.5 * jnp.sum(jnp.exp(teacher) * (teacher - student), -1)


def cross_entropy(chunks, x, table, targets):
  return -chunked_losses.token_log_probs(x, table, targets, chunked_losses.Cut(chunks))


def distillation(chunks, x, table, targets, teacher_x, teacher_table):
  log_probs, divergence = chunked_losses.distill(x, table, targets, teacher_x, teacher_table, 1.0, chunked_losses.Cut(chunks))
  return -0.5 * log_probs + 0.5 * divergence


FORMS = {
    "cross-entropy": {"plain": plain_cross_entropy, **{c: functools.partial(cross_entropy, c) for c in CHUNKS}},
    "distillation": {"plain": plain_distillation, **{c: functools.partial(distillation, c) for c in CHUNKS}}}


def shapes(form, tokens, width, teacher_width, dtype, sharding=None):
  struct = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  student = struct(dtype, 1, tokens, width), struct(dtype, width, VOCABULARY), struct(jnp.int32, 1, tokens)
  return student if form == "cross-entropy" else (*student, struct(dtype, 1, tokens, teacher_width), struct(dtype, teacher_width, VOCABULARY))


def step(loss):
  """Its mean and the gradients of hidden states and table."""
  return jax.jit(jax.value_and_grad(lambda *arrays: jnp.mean(loss(*arrays)), (0, 1)))


def beside(compiled) -> float:
  """GiB that a program needs besides what it takes and gives."""
  return compiled.memory_analysis().temp_size_in_bytes / 2**30


def seconds(compiled, arguments, rounds=3) -> float:
  compiled(*arguments)
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return float(np.median(times))


def main():
  # tokens, widths of student and teacher
  cpu = (128, 256, 384, jnp.float32)
  chip = (8192, 2560, 4096, jnp.bfloat16)
  device = jax.sharding.SingleDeviceSharding(topology.devices(TARGET)[0])
  print(f"{machine.line()}, V = {VOCABULARY:,}\n")
  print("| loss | form | GiB, TPU v5e | GiB, CPU | seconds, CPU |\n|---|---|---|---|---|")
  for form, ways in FORMS.items():
    abstract = shapes(form, *cpu)
    arguments = [jnp.zeros(s.shape, s.dtype) + 0.01 for s in abstract]
    arguments[2] = jnp.arange(cpu[0])[None]
    for name, loss in ways.items():
      there = step(loss).lower(*shapes(form, *chip, device)).compile()
      here = step(loss).lower(*abstract).compile()
      label = name if name == "plain" else f"{name} chunk{'s' * (name > 1)}"
      print(f"| {form} | {label} | {beside(there):.2f} | {beside(here):.2f} | {seconds(here, arguments):.2f} |", flush=True)


if __name__ == "__main__":
  main()
