"""Others' templates: the text that transformers renders, and none that ends a run."""

import threading
import time
import tracemalloc

import numpy as np
import pytest

from rm_jax.batch import templates
from rm_jax.batch.tokenise import HH_TEMPLATE, Convention, TextEncoder
from rm_jax.data.report import RowError
from tests.conftest import CHAT, decoder_tokenizer

CHATML = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
  "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
       and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' ~ content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'ipython' %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
      + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
  "{{ bos_token }}{% for message in messages %}"
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate') }}{% endif %}"
  "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
  "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}"
  "{% endfor %}"
)
ODDS = """
  {% macro turn(m, n=1) %}
  [{{ m.role|upper }}{{ '=' * n }}{{ caller() if caller else '' }}]
  {% endmacro %}
  {% set seen = [] %}
  {% for m in messages if m.content %}
    {{ turn(m, loop.index) -}}
    {% filter indent(2) %}{{ m.content }}{% endfilter %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {{ '%s|%d' % (m.role, loop.length) }} {{ '{0}-{1}'.format(m.role, loop.index) }}
    {{ loop.cycle('a', 'b') }} {{ m | tojson(indent=1) }}
    {{ m.content.replace('a', 'b') ~ 1 ~ none }}
  {% else %}nothing{% endfor %}
  {{ messages | map(attribute='role') | join(', ') }}
  {{ ' '.join(messages|map(attribute='role')) }}
  {{ [1, 2, 3] | sum }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 8 }}
  {{ undefined_name }} {{ none }} {{ 1.5 }}
  {{ messages[0] }} {{ strftime_now('%Y') }} {{ dict(a=1) }} {{ 'a' in 'abc' }} {{ "<&>" | e }}
  {% set block %}x{{ messages|length }}{% endset %}{{ block }}
  {% call turn(messages[0]) %}c{% endcall %}
"""
TEMPLATES = {
  "chat": CHAT,
  "hh": HH_TEMPLATE,
  "chatml": CHATML,
  "chatml with tools": CHATML_TOOLS,
  "llama 3": LLAMA3,
  "mistral": MISTRAL,
  "odds": ODDS,
}


def _dialogues(count, seed=0):
  rng = np.random.default_rng(seed)
  pieces = [
    "a",
    "Hello\n",
    " ",
    "é漢😀",
    "</think>",
    "{{ x }}",
    "<b>",
    "'",
    '"',
    "\\n",
    "\n\nHuman: ",
  ]
  for _ in range(count):
    roles = ["system"] * int(rng.integers(2)) + ["user", "assistant"] * int(rng.integers(1, 5))
    roles = roles[: max(1, len(roles) - int(rng.integers(2)))]
    yield [
      {"role": role, "content": "".join(rng.choice(pieces, rng.integers(0, 6)))} for role in roles
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_transformers_own(name):
  tokenizer = decoder_tokenizer(chat=TEMPLATES[name])
  rendered = 0
  for messages in _dialogues(40):
    for generation in (False, True):
      try:
        expected = tokenizer.apply_chat_template(
          messages, tokenize=False, add_generation_prompt=generation, date_string="01 Jan 2020"
        )
      except Exception as error:
        expected = type(error)
      variables = tokenizer.special_tokens_map | {"date_string": "01 Jan 2020"}
      try:
        found = templates.render(
          TEMPLATES[name], messages, add_generation_prompt=generation, **variables
        )
      except Exception as error:
        found = type(error)
      assert found == expected
      rendered += isinstance(found, str)
  assert rendered >= 20


ENDLESS = (
  "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
  "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
  "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
)
HOSTILE = (
  *ENDLESS,
  "{% for i in range(10**9) %}x{% endfor %}",
  "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "{{ 'a' * 10**10 }}",
  "{{ 10**10 * 'a' }}",
  "{{ 'a' * 10**7 }}",
  "{% set x = namespace(l=[1]) %}{% for i in range(21) %}{% set x.l = x.l + x.l %}{% endfor %}",
  "{{ 9 ** (9 ** 9) }}",
  "{% set x = 2**30000 * 2**30000 * 2**30000 %}",
  "{{ 'a' + 1 }}",
  "{{ 1 / 0 }}",
  "{{ 'a'.center(10**9) }}",
  "{{ 'a' | center(10**9) }}",
  "{{ '%1000000000d' % 1 }}",
  "{{ '%*d' % (10**9, 1) }}",
  "{{ '{:1000000000}'.format(1) }}",
  "{{ '{:{}}'.format(1, 10**9) }}",
  "{{ ''.join(['a' * 10**6] * 10**5) }}",
  "{{ (['a' * 10**6] * 10**5) | join }}",
  "{{ ('a\n' * 5 * 10**5) | indent(10**5) }}",
  "{{ ('aaaaaaaaaa' * 10**5).replace('a', 'b' * 10**5) }}",
  "{{ {} | tojson(indent=10**9) }}",
  "{{ ([[0] * 10**6] * 10**4) | sum(start=[]) | length }}",
  "{% set x = namespace(v='a') %}{% for i in range(60) %}{% set x.v = x.v ~ x.v %}{% endfor %}",
  "{% set x = namespace(v='a') %}{% for i in range(60) %}{% set x.v = x.v + x.v %}{% endfor %}",
  "{% set x = namespace(v=[]) %}{% for i in range(60) %}{% set x.v = [x.v, x.v] %}{% endfor %}"
  "{{ x.v }}",
  "{% set x = 'a' * 10**6 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
  "{% for i in range(12) %}{{ ('ab' * 5 * 10**5) | list | sort | length }}{% endfor %}",
  "{{ ('ab' * 5 * 10**5) | unique | list }}",
  "{{ ('www.a ' * 15 * 10**4) | urlize | length }}",
  "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
  "{% include '/etc/passwd' %}",
  "{% if %}",
  "{{ messages | nofilter }}",
)


@pytest.mark.parametrize(
  "template",
  [pytest.param(t, marks=[pytest.mark.slow] * (t in ENDLESS), id=t[:40]) for t in HOSTILE],
)
def test_a_template_that_no_conversation_can_be_rendered_by_is_refused_when_loaded(
  template, monkeypatch
):
  monkeypatch.setattr(templates, "_SECONDS", 1.0)  # and not 5, which an endless one takes whole
  tokenizer = decoder_tokenizer(chat=template)
  began = time.thread_time()
  with pytest.raises(ValueError, match="the chat template cannot be rendered: ") as error:
    TextEncoder(tokenizer, Convention())
  assert time.thread_time() - began < 3
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "use",
  [
    *(f"{{{{ b | {name} }}}}" for name in templates._WRITE),
    "{{ b | replace('0', '1') }}",
    "{{ b | center(5) }}",
    "{{ 'x' | replace(b, 'y') }}",
    "{{ 'x' | replace('x', b) }}",
    "{{ 'x'.replace('x', b) }}",
    "{{ '%s' | format(b) }}",
    "{{ [1, 2] | join(b) }}",
    "{{ [b] | map('upper') | list }}",
    "{{ b is upper }}",
    "{{ [b] | select('lower') | list }}",
    "{{ 'x' ~ b }}",
    "{{ namespace(x=b) }}",
    "{{ namespace(x=b) | upper }}",
    "{{ {'x': b}.values() }}",
    "{{ {'x': b}.items() | string }}",
    "{{ raise_exception(b) }}",
    "{{ [1].index(b) }}",
    "{{ {}[b].x }}",
  ],
)
def test_no_text_is_made_before_it_is_measured(use):
  template = "{% set a = ['x' * 1000] * 1000 %}{% set b = [a] * 12 %}" + use  # 12 MB of text
  templates._compiled(template)
  tracemalloc.start()
  try:
    with pytest.raises(templates.LimitError, match="it makes a text or a list of"):
      templates.render(template, [])
    assert tracemalloc.get_traced_memory()[1] < 2**22
  finally:
    tracemalloc.stop()


def test_what_is_measured_is_still_written():
  told = (
    "{% set b = [[0, 'a'], {'k': none}] %}{{ b | upper }} {{ b is upper }} {{ 'A' is upper }} "
    "{{ namespace(x=b) }} {{ {'x': b}.values() | lower }} {{ [b, 1] | join(', ') }} "
    "{{ ' q ' | trim }}{{ 1 | center(3) }}{{ 12 | replace(1, 3) }} {{ {}[b] }}{{ b | wordcount }}"
  )
  b = [[0, "a"], {"k": None}]
  values = str({"x": b}.values()).lower()
  assert templates.render(told, []) == (
    f"{str(b).upper()} False True <Namespace {{'x': {b}}}> {values} {b}, 1 q 1 32 4"
  )


@pytest.mark.parametrize(
  "fault",
  [
    "{{ 'a' + 1 }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ m.content.x.y }}",
  ],
)
def test_what_fails_on_some_rows_is_a_fault_of_these(fault):
  when = "{% for m in messages %}{{ m.content }}{% if 'bad' in m.content %}" + fault
  tokenizer = decoder_tokenizer(chat=when + "{% endif %}{% endfor %}")
  encoder = TextEncoder(tokenizer, Convention())
  pairs = [
    (({"role": "user", "content": text},), ({"role": "assistant", "content": "b"},))
    for text in ("fine", "bad", "fine")
  ]
  found = []
  thread = threading.Thread(target=lambda: found.extend(encoder.rendered(pairs)))
  thread.start()
  thread.join()
  assert [isinstance(one, RowError) for one in found] == [False, True, False]
  found = encoder.sequences(pairs)
  assert [isinstance(one, RowError) for one in found] == [False, True, False]
  assert found[1].reason == "template_error"


def test_more_special_tokens_are_no_hindrance():
  tokenizer = decoder_tokenizer(chat="{{ bos_token }}{{ messages[0].content }}")
  tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]})
  encoder = TextEncoder(tokenizer, Convention())
  assert encoder.render([{"role": "user", "content": "a"}]) == "<s>a"


@pytest.mark.slow
def test_long_conversations_are_within_the_limits():
  messages = [
    {"role": ("user", "assistant")[n % 2], "content": "some words " * 40} for n in range(2001)
  ]
  every = (
    "{% for m in messages %}{% set ns = namespace(n=0) %}{% for o in messages[:50] %}"
    "{% set ns.n = ns.n + o.content|length %}{% endfor %}{{ m.role ~ m.content }}{% endfor %}"
  )
  added = (
    "{% set ns = namespace(text='') %}{% for m in messages %}"
    "{% set ns.text = ns.text + m.content %}{% endfor %}{{ ns.text }}"
  )
  for template in (CHATML_TOOLS, LLAMA3, every, added):
    text = templates.render(template, messages, add_generation_prompt=True, bos_token="<s>")
    assert text.count("some words") == 40 * 2001
