"""GUI grounding on held-out screens: is the predicted point inside the named element?"""

import dataclasses

import numpy as np

from bluelm_jax.data import images
from bluelm_jax.data import sources
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens
from bluelm_jax.inference.request import Options

VAIN_DRAWS = 1000  # draws in a row that bring nothing new, before we say that there is no more


@dataclasses.dataclass(frozen=True)
class Item:
  """One question; `screen` numbers the screen it is about."""

  screen: int
  image: np.ndarray
  language: str
  label: str
  box: tuple[float, float, float, float]


def items(path: str, count: int, seed: int) -> list[Item]:
  """Questions about the screens of a shard, at most three a screen, drawn from a seed."""
  shard, rng, found = sources.read_shard(path), np.random.default_rng(seed), []
  for i in rng.permutation(len(shard)):
    sample = shard[int(i)]
    named = screens.targets(sample.meta["elements"], sample.meta["language"])
    image = images.decode(sample.images[0])
    for j in rng.permutation(len(named))[:3]:
      found.append(Item(int(i), image, sample.meta["language"], named[j][0], tuple(named[j][1]["box"])))
  if len(found) < count:
    raise ValueError(f"{path} has no {count} elements to point at; lower evaluation.grounding_items")
  return found[:count]


def predict(engine, chat, tokenizer, pictures: list[np.ndarray], asked: list[Item]) -> list[str]:
  """Replies to "Point to the ..." with the given picture for each item."""
  prompts = []
  for picture, item in zip(pictures, asked):
    text = screens.PHRASES["point"][item.language].format(item.label)
    message = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}
    prompts.append(chat.prompt([message], thinking=False))
  return replies(engine, tokenizer, prompts, Options(max_tokens=14))


def replies(engine, tokenizer, prompts, options: Options) -> list[str]:
  """Texts for many prompts."""
  answers = engine.generate(prompts, options)
  return [said(tokenizer, answer) for (answer,) in answers]


def said(tokenizer, answer) -> str:
  """The text of one answer's tokens, markers of thought included and the end token left out."""
  return tokenizer.decode([t.token for t in answer if t.finish != "stop"])


def hit(reply: str, box) -> bool:
  at = screens.parse_point(reply)
  return at is not None and box[0] <= at[0] <= box[2] and box[1] <= at[1] <= box[3]


def evaluate(engine, chat, tokenizer, path: str, count: int, seed: int) -> dict:
  """The model with the right screen, a blank one and another screen; and a point drawn at random.

  Returns:
    "items", "replies", and per condition an array of hits (chance: the probability of one).
  """
  asked = items(path, count, seed)
  own = [item.image for item in asked]
  # The next screen in the list is another one: items of a screen are neighbours, at most three.
  other = [own[(i + 3) % len(own)] for i in range(len(own))]
  result = {"items": asked, "chance": np.array([(b[2] - b[0]) * (b[3] - b[1]) for b in (i.box for i in asked)])}
  for name, pictures in (("model", own), ("no image", [np.full_like(p, 127) for p in own]), ("other image", other)):
    said = predict(engine, chat, tokenizer, pictures, asked)
    result[name] = np.array([hit(r, i.box) for r, i in zip(said, asked)])
    if name == "model":
      result["replies"] = said
  return result


def ask_colors(engine, chat, tokenizer, path: str, count: int, seed: int) -> dict:
  """Multi-step questions on held-out screens ("is the top button red or blue?"), at once, also of a blank screen, and thinking.

  Returns:
    "items", "screens" (the screen each is about), and for each condition, "STYLE" or "none blank", an array of
    right answers; the replies under "STYLE replies".
  """
  shard, rng, made, about, asked = sources.read_shard(path), np.random.default_rng(seed), [], [], set()
  vain = 0
  while len(made) < count and vain < VAIN_DRAWS:
    vain += 1
    at = int(rng.integers(len(shard)))
    sample = shard[at]
    question = screens.color(sample.meta["elements"], sample.meta, rng)
    if question is not None and (at, question[0]) not in asked:
      vain = 0
      asked.add((at, question[0]))
      made.append((images.decode(sample.images[0]), sample.meta["language"], *question))
      about.append(at)
  if len(made) < count:
    raise ValueError(f"{path} has no {count} different questions; lower evaluation.screen_items")
  result = {"items": made, "screens": np.array(about)}
  for condition in ("none", "none blank", "short", "long"):
    style, _, blank = condition.partition(" ")
    thinking, prompts = style != "none", []
    for image, language, ask, _, _ in made:
      text = ask if style == "none" else screens.hinted(ask, style, language)
      image = np.full_like(image, 127) if blank else image
      message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
      prompts.append(chat.prompt([message], thinking))
    found = replies(engine, tokenizer, prompts, Options(max_tokens=48 if thinking else 4, thinking=thinking))
    result[condition] = np.array([r.rsplit("</think>", 1)[-1].strip() == answer.strip() for r, (*_, answer) in zip(found, made)])
    result[f"{condition} replies"] = found
  return result
