"""What a sample is about and what it can teach, by rules that a person can read; a model's labels can replace them.

A domain's score is how many of its words (or phrases) a text has, per 100 words; the best over a floor wins. The lists are ours,
short on purpose: they sort documentation and web prose coarsely, and the data card shows samples of what they did.
"""

import collections
import re

from bluelm_jax.data.forms import MARK
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import tokens

_FLOOR = 1.5  # hits in 100 words
_LONG = 24_000  # characters, about 8K tokens
_DOMAINS = {
    "computing": "python function module file files command server software code class method string package kernel install installed configure "
                 "directory user menu dialog click button network linux windows debian 函数 命令 文件 软件 安装 配置 服务器 目录 点击 单击 菜单 对话框 程序 系统 内核 网络 用户",
    "mathematics": "theorem proof integer matrix vector equation polynomial probability derivative integral algebra geometry 定理 证明 整数 矩阵 向量 方程 概率 导数 积分 代数 几何",
    "science": "energy species molecule protein cell physics chemistry planet star temperature experiment 能量 物种 分子 蛋白质 细胞 物理 化学 行星 温度 实验",
    "medicine": "patient disease treatment clinical symptom medicine doctor hospital drug therapy 患者 疾病 治疗 临床 症状 药物 医生 医院",
    "law": "court law contract licence license liability plaintiff statute clause copyright 法院 法律 合同 许可证 责任 条款 著作权 版权",
    "economy": "market price company economic bank investment stock trade tax growth 市场 价格 公司 经济 银行 投资 股票 贸易 税收",
    "literature": "she her he him said love heart poem poet story novel 她 说道 诗人 诗歌 故事 小说 爱情",
}
_ENGLISH = {word: name for name, words in _DOMAINS.items() for word in words.split() if word.isascii()}
_CHINESE = {word: name for name, words in _DOMAINS.items() for word in words.split() if not word.isascii()}
_CHINESE_WORD = re.compile("|".join(_CHINESE))
_READ = 2000  # characters: the beginning tells


def domain(text: str) -> str:
  """The domain whose words are the densest, "general" under the floor."""
  text = text[:_READ]
  words = tokens.split_words(text)
  found = [_ENGLISH[word] for word in words if word in _ENGLISH]
  if not text.isascii():
    found += [_CHINESE[word] for word in _CHINESE_WORD.findall(text)]
  counts = collections.Counter(found)
  best = max(_DOMAINS, key=lambda name: counts[name])
  return best if counts[best] * 100 >= _FLOOR * len(words) and words else "general"


def ability(sample: Sample) -> str:
  """What the sample trains, by its form: the first that holds."""
  answers = [m for m in sample.messages if m["role"] == "assistant"]
  if any(m.get("reasoning_content") for m in answers):
    return "visual_reasoning" if sample.images else "reasoning"
  if any(re.search(r"\(\d{1,4},\s*\d{1,4}\)|<box>|\[\d+, ?\d+, ?\d+, ?\d+\]", str(m["content"])) for m in answers) and sample.images:
    return "grounding"
  if sample.messages:
    return "visual_conversation" if sample.images else "conversation"
  if sample.images:
    return "interleaved" if MARK in sample.text else "captioning"
  if sample.meta.get("language") == "code":
    return "code"
  return "long_context" if len(sample.text) > _LONG else "language"
