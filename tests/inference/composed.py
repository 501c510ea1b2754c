"""What transformers says with the parts of a checkpoint: its SigLIP, our adapter written in torch, its language model."""

import pathlib

import einops
import numpy as np
import torch
import transformers

from bluelm_jax import load_pretrained
from bluelm_jax.data.batch import Example
from bluelm_jax.interop import compose


def greedy(checkpoint, prompts: list[Example], count: int, export: pathlib.Path, never: list[int]) -> list[list[int]]:
  """`count` tokens after each prompt, its images included and `never` excluded; the parts are written to `export`."""
  compose.export(checkpoint, export)
  vision = transformers.SiglipVisionModel.from_pretrained(export / "vision").eval()
  decoder = transformers.AutoModelForCausalLM.from_pretrained(export / "decoder", dtype=torch.float32).eval()
  decoder.generation_config.eos_token_id = None
  model, params = load_pretrained(checkpoint)
  answers = []
  for prompt in prompts:
    with torch.no_grad():
      states = decoder.get_input_embeddings()(torch.tensor(prompt.tokens, dtype=torch.long))
      if len(prompt.tiles):
        pixels = torch.tensor(prompt.tiles.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        visual = _adapted(vision(pixels).last_hidden_state, prompt.tile_places, model.config, params["adapter"]).flatten(0, 1)
        index = torch.tensor(prompt.vision_index, dtype=torch.long)
        states = torch.where(index[:, None] >= 0, visual[index.clamp(min=0)], states)
      out = decoder.generate(
          inputs_embeds=states[None], attention_mask=torch.ones(1, len(states), dtype=torch.long), max_new_tokens=count, do_sample=False, pad_token_id=0,
          suppress_tokens=never or None)
    answers.append(out[0].tolist())
  return answers


def _adapted(x_NPD, places, config, params):
  p = {name: torch.tensor(np.array(value, np.float32)) for name, value in params.items()}
  g, m = config.vision.grid, config.adapter.merge
  x = einops.rearrange(x_NPD, "n (y x) d -> n y x d", y=g)
  x = torch.nn.functional.pad(x, (0, 0, 0, -g % m, 0, -g % m))
  x = einops.rearrange(x, "n (y my) (x mx) d -> n (y x) (my mx d)", my=m, mx=m) @ p["up"] + p["up_bias"]
  if "tile_places" in p:
    x = x + p["tile_places"][torch.tensor(places, dtype=torch.long)][:, None]
  return torch.nn.functional.gelu(x, approximate="tanh") @ p["down"] + p["down_bias"]
