"""What a generator is asked, in the language of the question."""

import base64
from typing import Any, Sequence

from bluelm_jax.data.sample import Sample

INSTRUCTION = {
    "en": "Think first, then put the final answer, and nothing but it, into \\boxed{}.",
    "zh": "请先思考，再把最终答案（且仅有答案）写进 \\boxed{} 中。"}
# Of check "code", where tests call what the question names; or where they give standard input.
PROGRAM = {
    "en": "Think first, then give the whole program, and nothing else, in one ```python code block.",
    "zh": "请先思考，再把完整的程序（且仅有程序）写进一个 ```python 代码块中。"}
PROGRAM_READS = {
    "en": PROGRAM["en"][:-1] + "; it reads standard input and prints the answer.",
    "zh": PROGRAM["zh"][:-1] + "，程序从标准输入读取数据，并打印答案。"}
_REPLY = {
    "en": "Reply with the new question alone, between <question> and </question>.",
    "zh": "只回复新题目，放在 <question> 与 </question> 之间。"}
# What a rewriter is told. "numbers" and "reverse" make questions with answers of their own, which a majority has to find.
REWRITE = {
    "paraphrase": {
        "en": "Say this question in other words. Keep all numbers (as digits), names, formulas and options, and what is asked.",
        "zh": "请换一种说法改写下面的题目。保留所有数字（用阿拉伯数字）、名称、公式和选项，所问的内容不变。"},
    "translate": {
        "en": "Translate this question into Chinese. Keep all numbers (as digits), formulas and option letters.",
        "zh": "请把下面的题目翻译成英文。保留所有数字（用阿拉伯数字）、公式和选项字母。"},
    "numbers": {
        "en": "Change the numbers of this question, and only what must change with them, so that it has another answer.",
        "zh": "请更换下面题目中的数字，只改动必须随之改动的部分，使答案不同。"},
    "reverse": {
        "en": "Reverse this question: state its answer as known, and ask for one of the things that it states.",
        "zh": "请把下面的题目反过来：把原来的答案作为已知条件，改问原题中的一个条件。"}}
KEEP_ANSWER = ("paraphrase", "translate")


def _in(texts: dict[str, str], question: Sample) -> str:
  return texts["zh" if question.meta["language"] == "zh" else "en"]


def with_text(question: Sample, text: str) -> Any:
  """A question's content with other words; its images come first."""
  content = question.messages[0]["content"]
  return text if isinstance(content, str) else [p for p in content if p["type"] != "text"] + [{"type": "text", "text": text}]


def asked(question: Sample) -> dict[str, Any]:
  """The user turn of a sample: the question, and how to answer."""
  q = question.meta["question"]
  how = INSTRUCTION if q["check"] != "code" else PROGRAM if isinstance(q["tests"], str) else PROGRAM_READS
  content, how = question.messages[0]["content"], _in(how, question)
  return {"role": "user", "content": f"{content}\n{how}" if isinstance(content, str) else [*content, {"type": "text", "text": f"\n{how}"}]}


def solve(question: Sample) -> list[dict[str, Any]]:
  """The prompt that asks for a way to the answer."""
  return [_inline(asked(question), question.images)]


def rewrite(question: Sample, kind: str) -> list[dict[str, Any]]:
  """The prompt that asks for another question."""
  answer = question.meta["question"]["answer"]
  known = _in({"en": f"\nIts answer: {answer}", "zh": f"\n它的答案：{answer}"}, question) if kind == "reverse" and answer else ""
  content = question.messages[0]["content"]
  text = content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")
  told = f"{_in(REWRITE[kind], question)}{known}\n{_in(_REPLY, question)}\n\n{text}"
  return [_inline({"role": "user", "content": with_text(question, told)}, question.images)]


def _inline(message: dict[str, Any], images: Sequence[bytes]) -> dict[str, Any]:
  """A message with its images in it, as endpoints take them."""
  if isinstance(message["content"], str):
    return message
  shown = iter(images)
  return {**message, "content": [{"type": "image_url", "image_url": {"url": _data_url(next(shown))}} if p["type"] == "image" else p for p in message["content"]]}


def _data_url(image: bytes) -> str:
  kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[8:12] == b"WEBP" else "jpeg"
  return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
