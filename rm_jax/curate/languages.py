"""Guesses of a text's script and language: heuristics, without a model or a corpus."""

import unicodedata

from rm_jax.metrics.surface import words

# Words that English writes alike ('a', 'do', 'die', 'no', 'come') are in English's list alone.
_STOP_WORDS = {
  "English": "the of and to in is that it for you was with on are this a i do can what how my",
  "German": "der und das ist nicht ich ein zu den mit sie es auf für wie eine von im auch",
  "French": "le la les et des est un une que pour dans pas je vous qui ce il sur du avec",
  "Spanish": "el la los que y en es un una por con para se las del como más su lo",
  "Portuguese": "o os que e em um uma não para com de da é se por como mais você",
  "Italian": "il di che è la per un una non sono con del si le da gli nel anche più",
  "Dutch": "de het een en van dat ik niet je op te voor met zijn er aan wat hoe ook",
}
_LANGUAGE_OF: dict[str, list[str]] = {}
for _language, _list in _STOP_WORDS.items():
  for _word in _list.split():
    _LANGUAGE_OF.setdefault(_word, []).append(_language)


class _Scripts(dict):
  """letter -> the first word of its Unicode name ('LATIN', 'CYRILLIC', 'CJK' ...)."""

  def __missing__(self, letter: str) -> str:
    name = unicodedata.name(letter, "UNNAMED").split()[0].split("-")[0] if letter.isalpha() else ""
    self[letter] = name
    return name


_SCRIPTS = _Scripts()


def guess_script(text: str) -> str:
  """A heuristic: the script that most of the letters are named after in Unicode.

  Returns:
    'LATIN', 'CYRILLIC', 'CJK' ...; 'mixed' where none has 80 % of the letters, 'none' where there
    are no letters. Japanese is CJK or HIRAGANA or mixed, as it is written.
  """
  counts: dict[str, int] = {}
  for letter in text:
    if script := _SCRIPTS[letter]:
      counts[script] = counts.get(script, 0) + 1
  if not counts:
    return "none"
  best = max(counts, key=counts.__getitem__)
  return best if counts[best] >= 0.8 * sum(counts.values()) else "mixed"


def guess_language(text: str) -> str:
  """A heuristic for seven languages in Latin script: whose stop words (about twenty) occur most.

  Returns:
    'English', 'German', 'French', 'Spanish', 'Portuguese', 'Italian' or 'Dutch'; 'unsure' where
    fewer than one word in ten is a stop word of the best, or two are equal (short texts often);
    for other scripts 'script:' and `guess_script`. Not a language identifier: it never saw a
    corpus, and calls another Latin language 'unsure' at best.
  """
  script = guess_script(text)
  if script != "LATIN":
    return f"script:{script}"
  found = words(text)
  counts: dict[str, int] = {}
  for word in found:
    for language in _LANGUAGE_OF.get(word, ()):
      counts[language] = counts.get(language, 0) + 1
  ranked = [*sorted(counts.values(), reverse=True), 0, 0]
  if ranked[0] < 0.1 * len(found) or ranked[0] == ranked[1]:
    return "unsure"
  return max(counts, key=counts.__getitem__)
