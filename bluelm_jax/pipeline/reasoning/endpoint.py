"""Asks an OpenAI-compatible endpoint (/chat/completions), with patience for one that is busy."""

import os
import random
import threading
import time
from typing import Any, Mapping, Sequence

import requests

_AGAIN = (408, 409, 425, 429)  # and every 5xx
_LONGEST = 60.0  # seconds between two tries
_thread = threading.local()


class Refused(Exception):
  """The endpoint will not answer this prompt, now or later: too long, or not to its taste."""


def ask(generator: Mapping[str, Any], messages: Sequence[Mapping], n: int) -> list[dict[str, str]]:
  """1 to n replies {"text", "thought", "finish"}; endpoints that know no `n` give one.

  Args:
    generator: see defaults.reasoning().generator.
    messages: in the OpenAI form.

  Raises:
    Refused: this prompt was refused (400, 413, 422).
    ValueError: the endpoint cannot be used: it knows neither the key nor the model, or was busy or absent for all retries.
  """
  url = generator["base_url"].rstrip("/") + "/chat/completions"
  body = {"model": generator["model"], "messages": messages, "n": n, "temperature": generator["temperature"], "max_tokens": generator["max_tokens"], **generator["extra"]}
  headers = {"Authorization": f"Bearer {os.environ[generator['api_key_env']]}"} if generator["api_key_env"] else {}
  reason = ""
  for retry in range(generator["retries"] + 1):
    try:
      response = _session().post(url, json=body, headers=headers, timeout=(min(10.0, generator["timeout"]), generator["timeout"]))
      if response.status_code == 200:
        return _replies(response.json())[:n]
      reason, wait = f"{response.status_code}: {' '.join(response.text.split())[:200]}", response.headers.get("Retry-After", "")
    except (requests.RequestException, KeyError, TypeError, ValueError, IndexError) as e:  # not there, or cut off in its answer
      reason, wait, response = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}", "", None
    if response is not None and response.status_code in (400, 413, 422):
      raise Refused(reason)
    if response is not None and response.status_code != 200 and response.status_code not in _AGAIN and response.status_code < 500:
      raise ValueError(f"{url} answers {reason}; check base_url, model and api_key_env of config.reasoning.generator")
    if retry < generator["retries"]:
      pause = float(wait) if wait.replace(".", "", 1).isdigit() else generator["backoff"] * 2**retry * random.uniform(0.5, 1.0)
      time.sleep(min(pause, _LONGEST))
  raise ValueError(f"{url} gave no answer in {generator['retries'] + 1} tries ({reason}); mend it and run again: what was answered is kept")


def _session() -> requests.Session:
  """A connection is kept a thread."""
  if not hasattr(_thread, "session"):
    _thread.session = requests.Session()
  return _thread.session


def _replies(found: Mapping) -> list[dict[str, str]]:
  if not found["choices"]:
    raise ValueError("no choices")
  return [{
      "text": choice["message"].get("content") or "",
      "thought": choice["message"].get("reasoning_content") or choice["message"].get("reasoning") or "",  # vLLM has used both names
      "finish": choice.get("finish_reason") or "stop"} for choice in found["choices"]]
