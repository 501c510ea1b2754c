"""Weights in and out.

  python -m bluelm_jax.convert --vision=SIGLIP_DIR --decoder=QWEN_DIR --output=DIR   # compose a BlueLM; its tokenizer gets our chat markers
  python -m bluelm_jax.convert --decoder=QWEN_DIR --output=DIR                       # one part alone
  python -m bluelm_jax.convert --checkpoint=DIR --export=HF_DIR                      # back to HuggingFace
"""

from absl import flags

from bluelm_jax import door

_VISION = flags.DEFINE_string("vision", None, "A HuggingFace SiglipVisionModel directory.")
_DECODER = flags.DEFINE_string("decoder", None, "A HuggingFace Llama, Qwen2 or Qwen3 directory.")
_OUTPUT = flags.DEFINE_string("output", None, "Where our checkpoint goes.")
_SEED = flags.DEFINE_integer("seed", None, "Of the new adapter; 0 where it is absent.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "One of our checkpoints.")
_EXPORT = flags.DEFINE_string("export", None, "Where the HuggingFace form goes.")


def main(argv):
  del argv
  composing = bool(_VISION.value or _DECODER.value or _OUTPUT.value)
  exporting = bool(_CHECKPOINT.value or _EXPORT.value)
  if composing == exporting:
    raise ValueError("give either --vision/--decoder with --output, or --checkpoint with --export")
  if exporting and not (_CHECKPOINT.value and _EXPORT.value):
    raise ValueError("--checkpoint and --export belong together; give both")
  if composing and not _OUTPUT.value:
    raise ValueError("--output is missing; say where the checkpoint goes")
  if exporting and _SEED.value is not None:
    raise ValueError("--seed is of a new adapter, and an export makes none; leave it out")
  from bluelm_jax.data import chat
  from bluelm_jax.interop import compose

  if exporting:
    compose.export(_CHECKPOINT.value, _EXPORT.value)
    print(f"wrote {_EXPORT.value}")
  else:
    compose.convert(_OUTPUT.value, _VISION.value, _DECODER.value, _SEED.value, chat.MARKERS)
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
  door.run(main)
