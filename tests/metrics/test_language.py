"""The two guesses on short texts of known script and language."""

import pytest

from rm_jax.metrics.language import guess_language, guess_script


@pytest.mark.parametrize(
  ("text", "script", "language"),
  [
    ("How do I get to the station? It is late.", "LATIN", "English"),
    ("a recipe for a cake with me as a baker, no nuts", "LATIN", "English"),
    ("Wie komme ich zum Bahnhof? Das ist nicht weit.", "LATIN", "German"),
    ("Comment est-ce que je vais à la gare ?", "LATIN", "French"),
    ("¿Cómo se llega a la estación? Es para los niños.", "LATIN", "Spanish"),
    ("Como é que eu chego lá? Não sei o que fazer.", "LATIN", "Portuguese"),
    ("Non so come andare, è una cosa che mi piace con il vino", "LATIN", "Italian"),
    ("Hoe kom ik op het station? Dat is niet ver van hier.", "LATIN", "Dutch"),
    ("Как пройти к вокзалу?", "CYRILLIC", "script:CYRILLIC"),
    ("我怎么去车站", "CJK", "script:CJK"),
    ("привет hello мир world", "mixed", "script:mixed"),
    ("42 !", "none", "script:none"),
    ("Obama Chicago Hawaii", "LATIN", "unsure"),
    ("que Obama", "LATIN", "unsure"),  # A stop word of two languages.
  ],
)
def test_guesses(text, script, language):
  assert guess_script(text) == script
  assert guess_language(text) == language
