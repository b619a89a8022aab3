"""The words of the world: two vocabularies that share no name, item, value or sentence.

A note lists entries, each an item and its value (a fact about the item). In sentences `{item}` and
`{value}` stand for one entry, `{name}` for the name of the person who asks. `grammar.py` reads a
text back by searching it for a scene's items and values, for names and for the wordings of layouts
and tones. So none of these may occur in another table's sentences; tests/world checks that texts
are read back as they were written.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scene:
  """A kind of note: its entries, the question about one of them, and sentences that answer it.

  Attributes:
    items: things that the note lists, with the article that they need inside a sentence.
    values: possible facts about an item; a note gives each of its items one of them.
    entry, ask, answer: wordings of an entry, a question and an answer; one of each is drawn.
  """

  items: tuple[str, ...]
  values: tuple[str, ...]
  entry: tuple[str, ...]
  ask: tuple[str, ...]
  answer: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """All words and sentences of one split's texts.

  Attributes:
    names: of the people who ask.
    intro: wordings of the prompt's first line.
    scenes: kinds of notes.
    layouts: layout -> wordings that ask for it. Both vocabularies have the same layouts.
    tones: -1 (rude) and 1 (polite) -> sentences. Those of the two tones are about equally long, so
      that length does not give the tone away.
    fillers: sentences that make a response longer and leave its true reward as it is.
  """

  names: tuple[str, ...]
  intro: tuple[str, ...]
  scenes: tuple[Scene, ...]
  layouts: dict[str, tuple[str, ...]]
  tones: dict[int, tuple[str, ...]]
  fillers: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split(", "))


TRAIN = Vocabulary(
  names=_words("Mia, Leo, Nora, Sam, Iris, Paul, Ella, Noah, Zoe, Ben, Anna, Finn, Jane, Tom"),
  intro=("I am {name}.", "Call me {name}.", "My name is {name}."),
  scenes=(
    Scene(
      items=_words(
        "the ladder, the drill, the saw, the hammer, the shovel, the rake, the tent, the axe, "
        "the kayak, the pump"
      ),
      values=_words("Oscar, Priya, Hugo, Lena, Omar, Ruth, Ivan, Clara, Felix, Nadia, Diego, Elsa"),
      entry=("{item} is with {value}", "{item} was lent to {value}"),
      ask=("Who has {item}?", "Who is using {item}?"),
      answer=("{value} has {item}.", "{item} is with {value}.", "please ask {value}."),
    ),
    Scene(
      items=_words("chess, choir, yoga, pottery, ballet, judo, drama, karate, tennis, painting"),
      values=_words(
        "one, two, three, four, five, six, seven, eight, nine, ten, eleven, noon, midnight"
      ),
      entry=("{item} starts at {value}", "{item} is at {value}"),
      ask=("When does {item} start?", "At what time is {item}?"),
      answer=("{item} starts at {value}.", "be there at {value}.", "come at {value}."),
    ),
    Scene(
      items=_words(
        "the report, the invoice, the contract, the map, the diary, the passport, the album, "
        "the permit, the recipe, the poster"
      ),
      values=_words(
        "kitchen, attic, garage, cellar, office, studio, pantry, lobby, shed, library, bathroom, "
        "workshop"
      ),
      entry=("{item} is in the {value}", "{item} lies in the {value}"),
      ask=("Where is {item}?", "In which room is {item}?"),
      answer=("{item} is in the {value}.", "look in the {value}.", "try the {value}."),
    ),
    Scene(
      items=_words(
        "the vase, the lamp, the clock, the mirror, the piano, the desk, the sofa, the rug, "
        "the statue, the printer"
      ),
      values=_words(
        "Oslo, Lima, Rome, Cairo, Quito, Delhi, Tokyo, Paris, Dublin, Boston, Athens, Madrid"
      ),
      entry=("{item} goes to {value}", "{item} must go to {value}"),
      ask=("Where does {item} go?", "To which city do we send {item}?"),
      answer=("{item} goes to {value}.", "we send it to {value}.", "to {value}."),
    ),
  ),
  layouts={
    "list": ("Use bullet points.", "Write a bullet list."),
    "numbers": ("Use numbers.", "Write a numbered list."),
    "quotes": ("Use quotation marks.", "Write it in quotes."),
    "brackets": ("Use brackets.", "Write it in brackets."),
  },
  tones={
    -1: ("Now go away.", "Read it yourself.", "What a silly question."),
    1: ("Happy to help!", "Thanks for asking!", "Have a nice day!"),
  },
  fillers=(
    "It was written today.",
    "The note is short.",
    "It is in blue ink.",
    "The paper is old.",
    "It is on the wall.",
    "There is a copy.",
  ),
)

HELDOUT = Vocabulary(
  names=_words("Tess, Jude, Cora, Eric, Lily, Owen, Ruby, Seth, Nina, Carl, Alice, Gus, Kate, Ray"),
  intro=("This is {name}.", "{name} here.", "You can call me {name}."),
  scenes=(
    Scene(
      items=_words(
        "the parrot, the hamster, the pony, the kitten, the rabbit, the turtle, the puppy, "
        "the goat, the canary, the lizard"
      ),
      values=_words("Marta, Simon, Helga, Victor, Rosa, Ahmed, Gwen, Pedro, Ingrid, Samir, Olga"),
      entry=("{item} belongs to {value}", "{item} was bought by {value}"),
      ask=("Who owns {item}?", "Whose is {item}?"),
      answer=("{item} belongs to {value}.", "{value} owns {item}.", "the owner is {value}."),
    ),
    Scene(
      items=_words(
        "the bakery, the bank, the museum, the pharmacy, the pool, the market, the gym, "
        "the cinema, the salon, the zoo"
      ),
      values=_words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
      entry=("{item} closes on {value}", "{item} shuts on {value}"),
      ask=("When does {item} close?", "On which day does {item} close?"),
      answer=("{item} closes on {value}.", "it closes on {value}.", "on {value}."),
    ),
    Scene(
      items=_words(
        "the ball, the kite, the scooter, the wagon, the drum, the puzzle, the doll, the helmet, "
        "the whistle, the sled"
      ),
      values=_words(
        "garden, barn, tower, forest, meadow, tunnel, harbor, stable, orchard, castle, cave"
      ),
      entry=("{item} was left at the {value}", "{item} lies by the {value}"),
      ask=("Where was {item} left?", "Where can I find {item}?"),
      answer=("{item} was left at the {value}.", "go to the {value}.", "it lies by the {value}."),
    ),
    Scene(
      items=_words(
        "the hikers, the dancers, the painters, the nurses, the pilots, the singers, the farmers, "
        "the students, the bakers, the lawyers"
      ),
      values=_words("Norway, Brazil, Kenya, Japan, Canada, Poland, Chile, Egypt, Vietnam, Iceland"),
      entry=("{item} travel to {value}", "{item} will visit {value}"),
      ask=("Where do {item} travel?", "Which country will {item} visit?"),
      answer=("{item} travel to {value}.", "they will visit {value}.", "the country is {value}."),
    ),
  ),
  layouts={
    "list": ("Reply with bullets.", "I want bullets."),
    "numbers": ("Reply with numbering.", "I want it numbered."),
    "quotes": ("Reply inside quote marks.", "I want it quoted."),
    "brackets": ("Reply inside parentheses.", "I want it in parentheses."),
  },
  tones={
    -1: ("Leave me alone.", "Only fools ask that.", "You waste my time."),
    1: ("It is a pleasure!", "Ask me any time!", "All the best to you!"),
  },
  fillers=(
    "Someone underlined it.",
    "The sheet is folded.",
    "I used a pencil.",
    "It has a date.",
    "The page is clean.",
    "It is near the door.",
  ),
)

SPLITS = {"train": TRAIN, "heldout": HELDOUT}
