"""The client of /get_reward against real servers, good and bad ones."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.rlhf.proxy import open_proxy, rendered
from rm_jax.rlhf.remote import Server
from tests.policy.small import byte_policy, one_device, world_policy

ROWS = [{"prompt": f"p{i}", "response": "r" * i} for i in range(1, 6)]


class Cut(bytes):
  """A body whose connection is closed before all of its declared length is there."""


@contextlib.contextmanager
def serving(answer):
  """(URL, what was asked) of a server; `answer`: what was asked -> (status, body)."""
  asked = []

  class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers["Content-Length"]))
      asked.append(json.loads(body))
      status, said = answer(asked[-1])
      self.send_response(status)
      if isinstance(said, Cut):
        self.send_header("Content-Length", str(len(said) + 9))
      self.end_headers()
      self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

    def log_message(self, *_):
      pass

  server = HTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/get_reward", asked
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def lengths(asked):
  return 200, {"rewards": [len(query) / 10 for query in asked["query"]], "scores": [], "more": 1}


def client(url, **options):
  return Server(url, lambda prompt, response: (prompt, f"{prompt}|{response}</s>"), **options)


def test_rewards_are_those_of_the_server_in_order():
  with serving(lengths) as (url, asked):
    found = client(url, at_once=2)(ROWS)
    assert found.tolist() == [len(f"p{i}|" + "r" * i + "</s>") / 10 for i in range(1, 6)]
    assert [len(one["query"]) for one in asked] == [2, 2, 1]
    assert asked[0] == {
      "query": ["p1|r</s>", "p2|rr</s>"],
      "prompts": ["p1", "p2"],
      "labels": ["", ""],
    }
    assert client(url)([]).shape == (0,)


BAD = {
  "another count": (lambda _: (200, {"rewards": [1.0]}), "answered 1 rewards to 5 queries"),
  "not finite": (
    lambda a: (200, {"rewards": [1.0, float("nan")] + [0.0] * (len(a["query"]) - 2)}),
    "the reward nan to the response 'rr'; expected a finite number",
  ),
  "no number": (lambda a: (200, {"rewards": ["1"] * 5}), "the reward '1' to the response 'r'"),
  "true": (lambda a: (200, {"rewards": [True] * 5}), "the reward True"),
  "huge": (lambda _: (200, {"rewards": [10**400] * 5}), "expected a finite number"),
  "deep": (lambda _: (200, b"[" * 100_000), "no JSON"),
  "no rewards": (lambda _: (200, {"scores": []}), 'expected {"rewards"'),
  "no JSON": (lambda _: (200, b"<html>"), "no JSON"),
  "refused": (lambda _: (404, {"detail": "no such path"}), "status 404 .*no such path"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_names_the_server_and_what_was_found(name):
  answer, expected = BAD[name]
  with serving(answer) as (url, _):
    with pytest.raises(InputError, match=expected) as error:
      client(url)(ROWS)
    assert url in str(error.value)


def test_what_is_no_url_is_named():
  with pytest.raises(InputError, match=r"http://\[x is no URL of a server"):
    client("http://[x")(ROWS)


def test_an_error_of_the_server_is_tried_again(monkeypatch):
  monkeypatch.setattr("rm_jax.rlhf.remote.time.sleep", lambda _: None)
  counts = iter(range(9))

  def twice(asked):
    return (500, {}) if next(counts) < 2 else lengths(asked)

  with serving(twice) as (url, asked):
    assert len(client(url)(ROWS)) == 5
    assert len(asked) == 3
  with serving(lambda _: (503, b"busy")) as (url, asked):
    with pytest.raises(InputError, match=r"status 503 .*busy"):
      client(url, tries=2)(ROWS)
    assert len(asked) == 2
  with pytest.raises(InputError, match="is not reached"):  # nobody listens there any more
    client(url, tries=1)(ROWS)


def test_an_answer_that_is_cut_off_is_asked_for_again(monkeypatch):
  monkeypatch.setattr("rm_jax.rlhf.remote.time.sleep", lambda _: None)
  counts = iter(range(9))

  def cut(asked):
    status, said = lengths(asked)
    return status, Cut(json.dumps(said).encode()[:20]) if next(counts) < 2 else said

  with serving(cut) as (url, asked):
    assert client(url)(ROWS).tolist() == client(url)(ROWS).tolist()
    assert len(asked) == 4
  with serving(lambda _: (200, Cut(b"{"))) as (url, asked):
    with pytest.raises(InputError, match="is not reached"):
      client(url, tries=2)(ROWS)
    assert len(asked) == 2


def test_a_proxy_of_a_server_asks_about_the_text_that_the_policy_wrote():
  rows = [{"prompt": ({"role": "user", "content": "Who?"},), "response": "Mia."}]
  with serving(lengths) as (url, asked):
    proxy = open_proxy([url], world_policy(), one_device(), shaping="clip(low=-1, high=2)")
    scored = proxy(rows)
  assert proxy.probe == pytest.approx([len(query) / 10 for query in asked[0]["query"]])
  assert asked[1]["query"] == ["\n\nHuman: Who?\n\nAssistant: Mia.<eos>"]
  assert asked[1]["prompts"] == ["\n\nHuman: Who?\n\nAssistant:"]
  assert scored.raw == pytest.approx([len(asked[1]["query"][0]) / 10])
  assert scored.shaped == pytest.approx([2.0])
  assert np.isnan(scored.disagreement).all()
  assert proxy.fingerprint["server"] == url
  eos = byte_policy(1).text_model.tokenizer.eos_token
  assert rendered(byte_policy(1))("a", "b") == ("a", f"ab{eos}")


def test_a_server_is_no_member_of_an_ensemble():
  with pytest.raises(InputError, match="expected one server, or folders alone"):
    open_proxy(["http://127.0.0.1:1/get_reward", "folder"], world_policy(), one_device())
