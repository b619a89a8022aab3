"""What files and flags declare is read strictly: records of JSON, and names with options."""

import dataclasses

import pytest

from rm_jax.declared import parse, parse_call, parse_calls
from rm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Record:
  name: str = "a"
  size: int = 1
  rate: float = 0.5
  on: bool | None = None
  weights: tuple[float, ...] = ()
  more: dict[str, int] | None = None

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f"size is {self.size}")


def test_a_record_becomes_its_dataclass():
  assert parse(Record, {}, "f: k") == Record()
  said = {"name": "b", "size": 2, "rate": 1, "on": False, "weights": [1, 2.5], "more": {"a": 1}}
  expected = Record("b", 2, 1, False, [1, 2.5], {"a": 1})
  assert parse(Record, said, "f: k") == expected


@pytest.mark.parametrize(
  ("said", "message"),
  [
    (None, "f: k is None; expected an object"),
    ([], r"f: k is \[\]; expected an object"),
    ({"x": 1, "y": 2}, "f: k has 'x, y', which we do not know; expected of name, size"),
    ({"name": 5}, "f: k.name is 5; expected a str"),
    ({"size": 1.0}, "f: k.size is 1.0; expected a int"),
    ({"size": True}, "f: k.size is True"),
    ({"size": None}, "f: k.size is None"),
    ({"size": -1}, "f: k: size is -1"),
    ({"rate": float("nan")}, "f: k.rate is nan"),
    ({"rate": 10**400}, "f: k.rate is 1000"),
    ({"rate": "1"}, "f: k.rate is '1'; expected a float"),
    ({"on": 1}, "f: k.on is 1; expected a bool or NoneType"),
    ({"weights": 1.0}, "f: k.weights is 1.0; expected a list of float"),
    ({"weights": [1.0, "x"]}, "f: k.weights is"),
    ({"weights": [float("inf")]}, "f: k.weights is"),
    ({"more": [1]}, "f: k.more is"),
    ({"name": "x" * 9999, "size": "y" * 9999}, r"^.{0,200}$"),
  ],
)
def test_a_record_that_is_none(said, message):
  with pytest.raises(ValueError, match=message):
    parse(Record, said, "f: k")


def test_names_with_options():
  assert parse_calls("a, b(c=1), d(e=(2, 'x'))", "?") == [
    ("a", {}),
    ("b", {"c": 1}),
    ("d", {"e": (2, "x")}),
  ]
  assert parse_calls("a", "?") == [("a", {})]
  assert parse_call("b(c=1)", "?") == ("b", {"c": 1})


@pytest.mark.parametrize(
  "text", ["", "a b", "a.b", "a(1)", "a(b=c)", "a(**{'b': 1})", "a, 1", "()", "a()()", "(" * 9999]
)
def test_what_is_no_list_of_names_is_refused_in_the_callers_words(text):
  with pytest.raises(InputError, match=r"^expected$"):
    parse_calls(text, "expected")
  with pytest.raises(InputError, match=r"^expected$"):
    parse_call(text, "expected")


@pytest.mark.parametrize("text", ["a, b", "a,"])
def test_one_name_is_not_a_list(text):
  with pytest.raises(InputError, match=r"^expected$"):
    parse_call(text, "expected")
