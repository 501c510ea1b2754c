"""Serves a checkpoint over HTTP: OpenAI's API, token ids, and a page to chat at.

  python -m bluelm_jax.serve --checkpoint=DIR     # then open http://127.0.0.1:8000
"""

import asyncio
import dataclasses
import ipaddress
import os
import pathlib
import sys

from absl import flags

from bluelm_jax import door
from bluelm_jax import process
from bluelm_jax.inference.server.limits import Limits

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A HuggingFace directory, a converted one, or a workdir.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; any but the loopback wants a proxy before it, for TLS and users.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
_NAME = flags.DEFINE_string("name", None, "The model's name for clients; by default the checkpoint's folder's.")
_ADMIN_TOKEN = flags.DEFINE_string("admin_token", "", "Bearer token of the admin calls; better set $BLUELM_ADMIN_TOKEN, unseen by ps.")
_WEIGHTS_ROOT = flags.DEFINE_string("weights_root", "", "Directory below which /admin/update_weights may load; else it loads nothing.")
_WRAP_UP = flags.DEFINE_string("wrap_up", "", "Said before a thought is closed because its budget is spent.")
_SLOTS = flags.DEFINE_integer("slots", 32, "Samples that are drawn at once.", lower_bound=1)
_PAGES = flags.DEFINE_integer("pages", None, "Pages of keys and values; by default for a quarter of the slots.", lower_bound=1)
_PAGE_SIZE = flags.DEFINE_integer("page_size", None, "Tokens of a page; 128 on TPUs and 16 elsewhere where it is absent.", lower_bound=1)
_TILES = flags.DEFINE_integer("tiles", 64, "Image tiles whose visual tokens are kept; those of one request must fit.", lower_bound=1)
_DRAFTS = flags.DEFINE_integer("drafts", 0, "Tokens guessed ahead from the text so far, and checked in the same step.", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", None, "Tokens drawn by one call of the device; by default 4 on GPUs and 1 elsewhere. More spare the host, and come in bursts.", lower_bound=1)
_KV_DTYPE = flags.DEFINE_enum("kv_dtype", None, ["int8"], "Precision of keys and values; the model's own where it is absent.")
for _field in dataclasses.fields(Limits):
  _define = flags.DEFINE_integer if _field.type is int else flags.DEFINE_float
  _define(f"limit_{_field.name}", _field.default, f"See {Limits.__module__}.")


def main(argv):
  del argv
  limits = Limits(**{f.name: flags.FLAGS[f"limit_{f.name}"].value for f in dataclasses.fields(Limits)})
  process.cache_programs()  # without process.keep_memory: bodies and images of all sizes would leave holes in a heap that keeps them
  try:
    from bluelm_jax.inference.server import run
  except ModuleNotFoundError as e:
    raise ValueError(f"serving needs {e.name}; pip install 'bluelm_jax[serve]'") from e
  from bluelm_jax.inference import conversation
  from bluelm_jax.inference.server.admin import Admin
  from bluelm_jax.inference.server.service import Service

  listener = run.listen(_HOST.value, _PORT.value)  # before the weights, which take long
  path = pathlib.Path(_CHECKPOINT.value)
  engine = dict(slots=_SLOTS.value, pages=_PAGES.value, page_size=_PAGE_SIZE.value, tiles=_TILES.value, drafts=_DRAFTS.value, steps=_STEPS.value, kv_dtype=_KV_DTYPE.value)
  speaker = conversation.Speaker(path, _WRAP_UP.value, **engine)
  speaker.release()
  service = Service(speaker, _NAME.value or path.resolve().name, limits)
  admin = Admin(service, speaker.model.config, _ADMIN_TOKEN.value or os.environ.get("BLUELM_ADMIN_TOKEN", ""), _WEIGHTS_ROOT.value)
  speaker.engine.warm_up()  # so that no client waits for a compiler
  host, port = listener.getsockname()[:2]
  print(f"serving {service.name} at http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
  asyncio.run(run.Server(service, admin, _loopback(host)).run_until_told([listener]))


def _loopback(host: str) -> bool:
  return ipaddress.ip_address(host).is_loopback


if __name__ == "__main__":
  door.run(main, required=("checkpoint",))
