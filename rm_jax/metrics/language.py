"""Guesses a text's script and language by simple heuristics, without a trained model."""

import unicodedata

from rm_jax.metrics.surface import words

# Stop words of each language. The other lists leave out words that are frequent in English, too
# ('a', 'do', 'die', 'no', 'come'), so that English text hardly counts for them.
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


LANGUAGES = tuple(_STOP_WORDS)


class _Scripts(dict):
  """Cache: letter -> first word of its Unicode name ('LATIN', 'CJK' ...); '' for non-letters."""

  def __missing__(self, letter: str) -> str:
    name = unicodedata.name(letter, "UNNAMED").split()[0].split("-")[0] if letter.isalpha() else ""
    self[letter] = name
    return name


_SCRIPTS = _Scripts()


def guess_script(text: str) -> str:
  """Guesses the script of a text: the first word of the Unicode name of most of its letters.

  Returns:
    'LATIN', 'CYRILLIC', 'CJK' ...; 'mixed' if no script has 80 % of the letters, 'none' if there
    are no letters. Japanese text may be CJK, HIRAGANA, KATAKANA or mixed, as it is written.
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
  """Guesses which of seven languages a text is in: the one whose stop words occur most.

  There are about twenty stop words of each language. This is not a trained language identifier:
  text in any other language with Latin script is at best called 'unsure', at worst one of the
  seven.

  Returns:
    'English', 'German', 'French', 'Spanish', 'Portuguese', 'Italian' or 'Dutch'; 'unsure' if fewer
    than one word in ten is a stop word of the best language or if two languages are equally good,
    which is frequent in short texts; 'script:' and what `guess_script` returns, if that is not
    'LATIN'.
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
