"""Scores of exports by transformers alone; run by another environment's Python, without rm_jax.

python read.py < texts.json > scores.json

texts.json: {folder: {"messages": [[...]], "strings": ["..."], "pairs": [["...", "..."]]}}, of which
any may be missing. scores.json: for each folder and kind the scores of texts "alone" and "padded"
in batches of 7; or {"refused": message} where the chat template refuses.
"""

import json
import sys

import jinja2
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

transformers.logging.set_verbosity_error()


def main():
  torch.set_num_threads(1)  # more than one is slower on models so small
  asked = json.load(sys.stdin)
  out = {"transformers": transformers.__version__}
  for folder, texts in asked.items():
    out[folder] = read(folder, texts)
  json.dump(out, sys.stdout)


def read(folder, asked):
  options = {}
  if transformers.__version__.startswith("4."):
    with open(f"{folder}/config.json", encoding="utf-8") as file:
      if json.load(file).get("attn_logit_softcapping") is not None:
        options["attn_implementation"] = "eager"  # its default leaves the cap out
  model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
  tokenizer = AutoTokenizer.from_pretrained(folder)

  def tokens(kind, texts, **options):
    if kind == "messages":
      return tokenizer.apply_chat_template(texts, tokenize=True, return_dict=True, **options)
    if kind == "strings":
      return tokenizer(texts, **options)
    return tokenizer([a for a, _ in texts], [b for _, b in texts], **options)

  def score(inputs):
    with torch.no_grad():
      logits = model(**inputs).logits
    assert logits.shape[1] == 1, logits.shape
    return logits[:, 0].tolist()

  out = {}
  for kind, texts in asked.items():
    alone, padded = [], []
    try:
      for text in texts:  # a conversation by itself, as people call it, and not a batch of one
        inputs = tokens(kind, text if kind == "messages" else [text], return_tensors="pt")
        alone += score(inputs)
      for i in range(0, len(texts), 7):
        padded += score(tokens(kind, texts[i : i + 7], padding=True, return_tensors="pt"))
    except jinja2.TemplateError as error:
      out[kind] = {"refused": str(error)}
      continue
    out[kind] = {"alone": alone, "padded": padded}
  return out


if __name__ == "__main__":
  main()
