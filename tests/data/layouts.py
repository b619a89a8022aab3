"""A row of each published layout, with invented texts, and what it is read as."""

import dataclasses
import json

from rm_jax.types import Example


def user(text):
  return {"role": "user", "content": text}


def bot(text):
  return {"role": "assistant", "content": text}


def system(text):
  return {"role": "system", "content": text}


def said(text):
  return (bot(text),)


Q = (user("Q"),)
GOOD, BAD = said("good"), said("bad")
TIED = ((0.0, 1.0), (1.0, 0.0))


@dataclasses.dataclass
class Layout:
  """A format's row as published.

  Attributes:
    row: the row.
    expected: what it is read as.
    flip: columns that turn its judgement round.
    flipped: the feedback then, as `feedback` gives it.
    by_name: whether the format is chosen by its name alone.
  """

  row: dict
  expected: Example
  flip: dict
  flipped: object
  by_name: bool = False


def feedback(example):
  """What an example says, for comparison: of a pair its order, else labels or ratings."""
  if example.kind == "pair":
    return example.responses if example.ties is None else "tie"
  return example.attributes if example.kind == "attributes" else example.labels


def pair(prompt=Q, responses=(GOOD, BAD), conversation="Q", **more):
  more = {"labels": (1.0, 0.0), "kind": "pair"} | more
  return Example(prompt, responses, origin="f:1", conversation=conversation, **more)


def ranking(prompt, responses, labels, conversation="Q", **more):
  more = {"kind": "ranking"} | more
  return Example(prompt, responses, labels, origin="f:1", conversation=conversation, **more)


def steps(texts, labels, **more):
  return Example(
    "Q\n",
    ("\n".join(texts),),
    labels,
    kind="step",
    steps=(tuple(texts),),
    origin="f:1",
    conversation="Q",
    **more,
  )


def rated(response, prompt, ratings, conversation, **more):
  return Example(
    prompt,
    (response,),
    (0.0,),
    kind="attributes",
    attributes=(ratings,),
    origin="f:1",
    conversation=conversation,
    **more,
  )


def _aspects(*ratings):
  names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
  notes = {n: {"Rating": r, "Rationale": "because"} for n, r in zip(names, ratings, strict=True)}
  return {"annotations": notes}


def _completion(model, text, overall, *ratings):
  more = {"custom_system_prompt": "Help.", "principle": "helpfulness", "critique": "fine"}
  scores = {"overall_score": overall, "fine-grained_score": 3.5}
  return {"model": model, "response": text, **scores, **more, **_aspects(*ratings)}


_ULTRAFEEDBACK = {
  "source": "evol_instruct",
  "instruction": "Q",
  "models": ["m1", "m2"],
  "completions": [
    _completion("m1", "bad", 3.0, "2", "N/A", "3", "1"),
    _completion("m2", "good", 8.5, "5", "4", "5", "4"),
  ],
  "correct_answers": ["None"],
  "incorrect_answers": ["None"],
}
_WORSE = {
  "completions": [
    _completion("m1", "bad", 8.5, "5", "4", "5", "4"),
    _completion("m2", "good", 3.0, "2", "N/A", "3", "1"),
  ]
}
_RATED = (
  {"instruction_following": 2.0, "truthfulness": 3.0, "helpfulness": 1.0},
  {"instruction_following": 5.0, "honesty": 4.0, "truthfulness": 5.0, "helpfulness": 4.0},
)
_SAFE = {
  "prompt": "Q",
  "response_0": "bad",
  "response_1": "good",
  "prompt_source": "dan",
  "response_0_source": "Alpaca-7B",
  "response_1_source": "Alpaca3-8B",
  "is_response_0_safe": True,
  "is_response_1_safe": False,
  "response_0_severity_level": 0,
  "response_1_severity_level": 2,
  "better_response_id": 1,
  "safer_response_id": 0,
}
_INFO = {"id": "t3_x", "post": "My cat left.", "title": "Cat", "subreddit": "pets", "article": None}
_POST = "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat left.\n\nTL;DR:"
_ARTICLE = {"id": "a1", "site": "cnn", "title": "Rain", "article": "It rained.", "post": None}
_CHAT = [user("Q"), bot("good"), user("more"), bot("end")]


def _parts(message):
  part = {"type": "text", "text": message["content"], "image": None, "mimeType": None}
  return {"role": message["role"], "content": [part]}


def _step(*completions, chosen=0, written=None):
  found = [{"text": t, "rating": r, "flagged": None} for t, r in completions]
  return {"completions": found, "human_completion": written, "chosen_completion": chosen}


def _prm800k(last):
  found = [
    _step(("one", 0)),
    _step(("wrong", -1), ("two", 1), chosen=1),
    _step(("no", -1), chosen=None, written={"text": "three", "rating": None, "source": "human"}),
    _step(("four\n\n# Answer\n\n42", last), ("other", 1), chosen=None),
    _step(("beyond", 1)),
  ]
  return {"steps": found, "total_time": 9, "finish_reason": "found_error"}


_SHEPHERD = "Q Step 1: 2 + 2 = 4. ки\nStep 2: 4 - 1 = 2. The answer is: 2 ки"
_TURNS = [{"from": "human", "value": "Q"}]

_STEERED = {"helpfulness": 4.0, "correctness": 3.0, "coherence": 4.0}
_STEERED |= {"complexity": 1.0, "verbosity": 2.0}
_SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def _solution(number, is_correct):
  return {"solution": f"A: {number}", "is_correct": is_correct}


def _summaries(*coherence):
  scores = [{"coherence": c, "relevance": r} for c, r in zip(coherence, (4.0, 2.0), strict=True)]
  texts = zip(("m1", "m2"), ("good", "bad"), scores, strict=True)
  responses = [{"system": m, "text": t, "scores": s} for m, t, s in texts]
  return {"doc_id": "7", "src": "A.", "ref_summ": "ref", "responses": responses}


LAYOUTS = {
  "qa_feedback": Layout(
    {"question": "Q", "passages": [["T", "T: a."]], "preference": [0, 1, 2, 1, 1, 2]}
    | {f"prediction {i}": f"answer {i}" for i in (1, 2, 3, 4)},
    ranking(
      "T: a.\n\nQuestion: Q\nAnswer:",
      tuple(f" answer {i}" for i in (1, 2, 3, 4)),
      (0.5, 5 / 6, 0.0, 2 / 3),
      conversation="T: a. Question: Q Answer:",
      pairs=((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 1.0, 1.0), (0.0,) * 4, (1.0, 0.0, 1.0, 0.0)),
      ties=((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0,) * 4, (0.0,) * 4),
    ),
    {"preference": [0, 2, 1, 2, 2, 1]},
    (0.5, 1 / 6, 1.0, 1 / 3),
  ),
  "helpsteer": Layout(
    {"prompt": "Q", "response": "good", "correctness": 3, "coherence": 4, "helpfulness": 4}
    | {"complexity": 1, "verbosity": 2},
    rated(GOOD, Q, _STEERED, "Q"),
    {"helpfulness": 0},
    (_STEERED | {"helpfulness": 0.0},),
  ),
  "gsm8k_solutions": Layout(
    {"question": "Q", "ground_truth": "1 + 1 = 2\nA: 2"}
    | {name: _solution(n, n == 2) for name, n in zip(_SYSTEMS, (1, 2, 2, 3), strict=True)},
    Example(
      "Q\n",
      ("A: 2", "A: 2", "A: 1", "A: 3"),
      (1.0, 1.0, 0.0, 0.0),
      kind="outcome",
      origin="f:1",
      conversation="Q",
      authors=("6b_verification", "175b_finetuning", "6b_finetuning", "175b_verification"),
      answers=("2", "2", "1", "3"),
    ),
    {name: _solution(n, n != 2) for name, n in zip(_SYSTEMS, (1, 2, 2, 3), strict=True)},
    (0.0, 0.0, 1.0, 1.0),
  ),
  "summ_human": Layout(
    _summaries(5.0, 2.0),
    ranking("A.\n\nSummary:", (" good", " bad"), (4.5, 2.0), "A. Summary:", authors=("m1", "m2")),
    _summaries(1.0, 2.0),
    (2.5, 2.0),
  ),
  "pandalm": Layout(
    {"idx": 0, "cmp_key": "m1_m2", "instruction": "Do", "input": "this", "response1": "bad"}
    | {"response2": "good", "annotator1": 2, "annotator2": 2, "annotator3": 0},
    ranking(
      "Do\n\nthis\n\n",
      ("bad", "good"),
      (1 / 6, 5 / 6),
      conversation="Do this",
      pairs=((0.0, 0.0), (2.0, 0.0)),
      ties=TIED,
      judges={"annotator1": 0.0, "annotator2": 0.0, "annotator3": 0.5},
    ),
    {"annotator1": 1, "annotator2": 1},
    (5 / 6, 1 / 6),
  ),
  "llmbar": Layout(
    {"input": "Q", "output_1": "bad", "output_2": "good", "label": 2},
    ranking("Q\n\n", ("bad", "good"), (0.0, 1.0)),
    {"label": 1},
    (1.0, 0.0),
  ),
  "prm800k": Layout(
    {"question": "Q", "steps": ["a", "b", "c"], "labels": ["positive", "neutral", "negative"]},
    steps(("a", "b", "c"), (1.0, 1.0, 0.0)),
    {"labels": ["negative", "neutral", "positive"]},
    (0.0, 1.0, 1.0),
  ),
  "bigbench_mistake": Layout(
    {"input": "Q", "target": "2", "answer": "3", "steps": ["a", "b", "c"], "mistake_index": 1},
    steps(("a", "b", "c"), (1.0, 0.0, 0.0)),
    {"mistake_index": None},
    (1.0, 1.0, 1.0),
  ),
  "prmbench": Layout(
    {"question": "Q", "modified_process": ["a", "b", "c"], "error_steps": [2], "idx": "circular_1"},
    steps(("a", "b", "c"), (1.0, 0.0, 1.0)),
    {"error_steps": [1, 3]},
    (0.0, 1.0, 0.0),
  ),
  "ultrafeedback": Layout(
    _ULTRAFEEDBACK,
    ranking(Q, (BAD, GOOD), (3.0, 8.5), authors=("m1", "m2")),
    _WORSE,
    (8.5, 3.0),
  ),
  "ultrafeedback_ratings": Layout(
    _ULTRAFEEDBACK,
    ranking(Q, (BAD, GOOD), (0.0, 0.0), kind="attributes", attributes=_RATED, authors=("m1", "m2")),
    _WORSE,
    _RATED[::-1],
    by_name=True,
  ),
  "helpsteer2_preference": Layout(
    {
      "split": "train",
      "prompt": "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree",
      "response_1": "good",
      "response_2": "bad",
      "preference_strength": -2,
      "preference_statement": "Response 1 is better.",
      "preference_elaboration": "It is.",
      "three_most_similar_preferences": [],
      "all_preferences_unprocessed": [
        {"strength": -3, "justification": "so"},
        {"strength": 1, "justification": "not so"},
        {"strength": -100, "justification": "neither"},
        {"strength": 0, "justification": "alike"},
      ],
    },
    pair(
      (user("one"), bot("two"), user("three")),
      conversation="one",
      margin=2.0,
      judges={"annotator 1": 1.0, "annotator 2": 0.0, "annotator 3": 0.5},
    ),
    {"preference_strength": 2},
    (BAD, GOOD),
  ),
  "helpsteer3": Layout(
    {
      "domain": "general",
      "language": "english",
      "context": [user("Q")],
      "response1": "bad",
      "response2": "good",
      "overall_preference": 3,
      "individual_preference": [
        {"score": 3, "reasoning": "so", "feedback1": "x", "feedback2": "y"},
        {"score": -1, "reasoning": "not", "feedback1": "x", "feedback2": "y"},
      ],
    },
    pair(margin=3.0, judges={"annotator 1": 1.0, "annotator 2": 0.0}),
    {"overall_preference": -3},
    (BAD, GOOD),
  ),
  "safe_rlhf": Layout(
    _SAFE,
    pair(authors=("Alpaca3-8B", "Alpaca-7B")),
    {"better_response_id": 0},
    (BAD, GOOD),
  ),
  "safe_rlhf_safety": Layout(
    _SAFE,
    pair(responses=(BAD, GOOD), authors=("Alpaca-7B", "Alpaca3-8B")),
    {"safer_response_id": 1},
    (GOOD, BAD),
    by_name=True,
  ),
  "beavertails": Layout(
    {"prompt": "Q", "response": "good", "category": {"privacy_violation": False}, "is_safe": True},
    ranking(Q, (GOOD,), (1.0,), kind="outcome"),
    {"is_safe": False},
    (0.0,),
  ),
  "summarize_comparisons": Layout(
    {
      "info": _INFO,
      "summaries": [
        {"text": " bad", "policy": "ref", "note": None},
        {"text": " good", "policy": "sup4", "note": "clear"},
      ],
      "choice": 1,
      "worker": "w1",
      "batch": "batch9",
      "split": "train",
      "extra": {"confidence": 8},
    },
    pair(_POST, (" good", " bad"), conversation=" ".join(_POST.split()), authors=("sup4", "ref")),
    {"choice": 0},
    (" bad", " good"),
  ),
  "summarize_axes": Layout(
    {
      "info": _ARTICLE,
      "split": "test",
      "summary": {
        "text": "good",
        "policy": "ref",
        "note": "fine",
        "axes": {"overall": 3, "accuracy": 7, "coverage": None, "coherence": 2, "compatible": True},
      },
      "worker": "w1",
      "batch": "cnndm1",
    },
    rated(
      " good",
      "TITLE: Rain\n\nARTICLE: It rained.\n\nTL;DR:",
      {"overall": 3.0, "accuracy": 7.0, "coherence": 2.0},
      "TITLE: Rain ARTICLE: It rained. TL;DR:",
      authors=("ref",),
    ),
    {"summary": {"text": "good", "axes": {"overall": 1}}},
    ({"overall": 1.0},),
  ),
  "webgpt": Layout(
    {
      "question": {"dataset": "eli5", "id": "x", "full_text": "Q"},
      "quotes_0": {"title": ["t"], "extract": ["e"]},
      "answer_0": "bad",
      "tokens_0": {"prefix": [1], "completion": [2]},
      "score_0": -0.5,
      "quotes_1": {"title": [], "extract": []},
      "answer_1": "good",
      "tokens_1": {"prefix": [1], "completion": [2]},
      "score_1": 0.5,
    },
    pair(margin=0.5),
    {"score_0": 0.5, "score_1": -0.5},
    (BAD, GOOD),
  ),
  "shp": Layout(
    {
      "post_id": "x",
      "domain": "askbaking_train",
      "upvote_ratio": 0.9,
      "history": "Q",
      "c_root_id_A": "a",
      "c_root_id_B": "b",
      "score_A": 20,
      "score_B": 2,
      "human_ref_A": "good",
      "human_ref_B": "bad",
      "labels": 1,
      "seconds_difference": 9.0,
      "score_ratio": 10.0,
    },
    pair(),
    {"labels": 0},
    (BAD, GOOD),
  ),
  "nectar": Layout(
    {
      "prompt": "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant: ",
      "answers": [
        {"answer": "bad", "model": "m1", "rank": 2.0},
        {"answer": "good", "model": "m2", "rank": 1.0},
        {"answer": "worse", "model": "m3", "rank": 3.0},
      ],
      "turns": 2,
      "num_responses": 3,
      "source": ["x"],
      "good_natured": True,
    },
    ranking(
      (user("one"), bot("two"), user("three")),
      (BAD, GOOD, said("worse")),
      (-2.0, -1.0, -3.0),
      "one",
      authors=("m1", "m2", "m3"),
    ),
    {"answers": [{"answer": "bad", "rank": 1}, {"answer": "good", "rank": 7}]},
    (-1.0, -7.0),
  ),
  "arena": Layout(
    {
      "question_id": "x",
      "model_a": "m1",
      "model_b": "m2",
      "winner": "model_b",
      "judge": "arena_user_9",
      "conversation_a": [user("Q"), bot("bad")],
      "conversation_b": [user("Q"), bot("good")],
      "turn": 1,
      "anony": True,
      "language": "English",
    },
    pair(authors=("m2", "m1")),
    {"winner": "model_a"},
    (BAD, GOOD),
  ),
  "arena_55k": Layout(
    {
      "id": 30192,
      "model_a": "m1",
      "model_b": "m2",
      "prompt": json.dumps(["Q", "more"]),
      "response_a": json.dumps(["good", "end"]),
      "response_b": json.dumps(["bad", "end"]),
      "winner_model_a": 1,
      "winner_model_b": 0,
      "winner_tie": 0,
    },
    pair(
      responses=(tuple(_CHAT[1:]), (bot("bad"), *_CHAT[2:])),
      authors=("m1", "m2"),
    ),
    {"winner_model_a": 0, "winner_model_b": 1},
    ((bot("bad"), *_CHAT[2:]), tuple(_CHAT[1:])),
  ),
  "math_shepherd": Layout(
    {
      "input": _SHEPHERD,
      "label": "Q Step 1: 2 + 2 = 4. +\nStep 2: 4 - 1 = 2. The answer is: 2 -",
      "task": "GSM8K",
    },
    steps(
      ["Step 1: 2 + 2 = 4.", "Step 2: 4 - 1 = 2. The answer is: 2"], (1.0, 0.0), answers=("2",)
    ),
    {"label": "Q Step 1: 2 + 2 = 4. -\nStep 2: 4 - 1 = 2. The answer is: 2 +"},
    (0.0, 1.0),
  ),
  "prm800k_published": Layout(
    {
      "labeler": "x",
      "timestamp": "2023-01-22",
      "generation": 9,
      "is_quality_control_question": False,
      "question": {"problem": "Q", "ground_truth_answer": "40", "pre_generated_steps": []},
      "label": _prm800k(-1),
    },
    steps(["one", "two", "three", "four\n\n# Answer\n\n42"], (1.0, 1.0, 1.0, 0.0), answers=("42",)),
    {"label": _prm800k(1)},
    (1.0, 1.0, 1.0, 1.0),
  ),
  "processbench": Layout(
    {
      "id": "gsm8k-0",
      "generator": "m1",
      "problem": "Q",
      "steps": ["one", "two", "three"],
      "final_answer_correct": False,
      "label": 1,
    },
    steps(["one", "two", "three"], (1.0, 0.0, 0.0), authors=("m1",)),
    {"label": -1},
    (1.0, 1.0, 1.0),
  ),
  "rewardbench2": Layout(
    {
      "id": "1",
      "prompt": "Q",
      "chosen": ["good"],
      "rejected": ["bad", "worse"],
      "num_correct": 1,
      "num_incorrect": 2,
      "total_completions": 3,
      "models": ["m1"],
      "subset": "Focus",
    },
    ranking(Q, (GOOD, BAD, said("worse")), (1.0, 0.0, 0.0)),
    {"chosen": ["bad", "worse"], "rejected": ["good"]},
    (1.0, 1.0, 0.0),
  ),
  "orca_dpo": Layout(
    {"system": "Be kind.", "question": "Q", "chosen": "good", "rejected": "bad"},
    pair((system("Be kind."), *Q)),
    {"chosen": "bad", "rejected": "good"},
    (BAD, GOOD),
  ),
  "alpaca": Layout(
    {
      "instruction": "Add.",
      "input": "2 + 2",
      "chosen": "good",
      "rejected": "bad",
      "system": "",
      "history": [["one", "two"]],
    },
    pair((user("one"), bot("two"), user("Add.\n2 + 2")), conversation="one"),
    {"chosen": "bad", "rejected": "good"},
    (BAD, GOOD),
  ),
  "alpaca_outputs": Layout(
    {"instruction": "Q", "input": "", "output": ["good", "bad"]},
    pair(),
    {"output": ["bad", "good"]},
    (BAD, GOOD),
  ),
  "alpaca_kto": Layout(
    {"instruction": "Q", "input": "", "output": "good", "kto_tag": True},
    ranking(Q, (GOOD,), (1.0,), kind="outcome"),
    {"kto_tag": False},
    (0.0,),
  ),
  "sharegpt": Layout(
    {
      "conversations": [{"from": "system", "value": "Be kind."}, *_TURNS],
      "chosen": {"from": "gpt", "value": "good"},
      "rejected": {"from": "gpt", "value": "bad"},
    },
    pair((system("Be kind."), *Q)),
    {"chosen": {"from": "gpt", "value": "bad"}, "rejected": {"from": "gpt", "value": "good"}},
    (BAD, GOOD),
  ),
  "sharegpt_kto": Layout(
    {"conversations": [*_TURNS, {"from": "gpt", "value": "good"}], "kto_tag": True},
    ranking(Q, (GOOD,), (1.0,), kind="outcome"),
    {"kto_tag": False},
    (0.0,),
  ),
  "ultrainteract": Layout(
    {
      "task": "Coding",
      "dataset": "apps",
      "trajectory": [
        *_TURNS,
        {"from": "gpt", "value": "try"},
        {"from": "human", "value": "Observation: no"},
      ],
      "chosen": "good",
      "rejected": "bad",
      "id": "2",
      "parent_id": "1",
    },
    pair((*Q, bot("try"), user("Observation: no"))),
    {"chosen": "bad", "rejected": "good"},
    (BAD, GOOD),
  ),
  "nemo_rl": Layout(
    {
      "context": [user("Q")],
      "completions": [
        {"rank": 1, "completion": [bot("bad")]},
        {"rank": 0, "completion": [bot("good")]},
      ],
      "task_name": "HelpSteer3",
    },
    pair(),
    {
      "completions": [
        {"rank": 0, "completion": [bot("bad")]},
        {"rank": 1, "completion": [bot("good")]},
      ]
    },
    (BAD, GOOD),
  ),
  "distilabel": Layout(
    {
      "instruction": "Q",
      "generations": ["bad", "good"],
      "generation_models": ["m1", "m2"],
      "ratings": [2, 5],
      "rationales": ["so", "so"],
    },
    ranking(Q, (BAD, GOOD), (2.0, 5.0), authors=("m1", "m2")),
    {"ratings": [5, 2]},
    (5.0, 2.0),
  ),
}
# Other forms of the same formats: the release of 140,000 votes, MT-Bench's first turn, and so on.
FORMS = [
  (
    "arena",
    {
      "id": "x",
      "evaluation_session_id": "s",
      "evaluation_order": 1,
      "model_a": "m1",
      "model_b": "m2",
      "winner": "both_bad",
      "conversation_a": [_parts(m) for m in _CHAT],
      "conversation_b": [_parts(m) for m in (user("Q"), bot("bad"))],
    },
    pair(responses=(tuple(_CHAT[1:]), BAD), labels=(0.0, 0.0), ties=TIED, authors=("m1", "m2")),
  ),
  (
    "arena",
    {
      "question_id": 81,
      "model_a": "m1",
      "model_b": "m2",
      "winner": "model_a",
      "judge": ["gpt4_pair"],
      "conversation_a": _CHAT,
      "conversation_b": [user("Q"), bot("bad"), user("more"), bot("other")],
      "turn": 1,
    },
    pair(authors=("m1", "m2")),
  ),
  (
    "orca_dpo",
    {"system": "", "input": "Q", "chosen": "good", "rejected": "bad", "generations": ["x"]},
    pair(),
  ),
  (
    "orca_dpo",
    {"input": "Q", "chosen": "good", "rejected": "bad", "status": "swapped", "rating": [9, 5]},
    pair(),
  ),
  (
    "orca_dpo",
    {"input": "Q", "chosen": "good", "rejected": "bad", "status": "tie", "rating": [8, 8]},
    pair(labels=(0.0, 0.0), ties=TIED),
  ),
  ("alpaca", {"instruction": "", "input": "Q", "chosen": "good", "rejected": "bad"}, pair()),
  ("webgpt", LAYOUTS["webgpt"].row | {"score_0": 0.0, "score_1": 0.0}, None),
  ("helpsteer3", LAYOUTS["helpsteer3"].row | {"overall_preference": 0}, None),
  ("safe_rlhf", {k: v for k, v in _SAFE.items() if "safe" not in k}, LAYOUTS["safe_rlhf"].expected),
  (
    "beavertails",
    {"prompt": "Q", "response": "good", "is_safe": False, "severity_level": 2},
    ranking(Q, (GOOD,), (0.0,), kind="outcome"),
  ),
  (
    "nemo_rl",
    {
      "context": [user("Q")],
      "completions": [
        {"rank": r, "completion": [bot(t)]} for r, t in ((2, "bad"), (0, "good"), (0, "fine"))
      ],
    },
    ranking(Q, (BAD, GOOD, said("fine")), (-2.0, 0.0, 0.0)),
  ),
]
