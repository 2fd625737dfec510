"""Words, label words and facts the bundled model is trained on.

The lists are our own. They live in JSON files next to this module, so that a task can be built
from them without importing anything heavy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from headloc.errors import HeadlocError

#: Arbitrary label words: none of them is the name of a category.
LABEL_WORDS: tuple[str, ...] = (
    "foo", "bar", "baz", "qux", "dax", "wug", "fep", "blick", "toma", "nim", "zorp", "lum",
)  # fmt: skip

#: Offsets k of the add-k tasks, and the range of x.
OFFSETS: tuple[int, ...] = tuple(range(1, 31))
X_MIN, X_MAX = 1, 100

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """One memorised statement: ``prompt`` is the text before the answer ``target``."""

    relation: str
    prompt: str
    subject: str
    target: str

    @property
    def sentence(self) -> str:
        """The whole statement, full stop included."""
        return f"{self.prompt}{self.target}."


@dataclass(frozen=True)
class Attempt:
    """A choice that was tried for the bundled model, and how it came out."""

    change: str
    result: str


@cache
def attempts() -> tuple[Attempt, ...]:
    """Earlier recipes, for the model card."""
    raw = _read("attempts.json")
    if not isinstance(raw, list):
        raise HeadlocError("attempts.json must be a list of changes and results.")
    return tuple(Attempt(**row) for row in raw)


@cache
def categories() -> dict[str, tuple[str, ...]]:
    """Semantic categories and their words."""
    raw = _read("words.json")
    if not isinstance(raw, dict):
        raise HeadlocError("words.json must map a category to a list of words.")
    return {str(name): tuple(words) for name, words in raw.items()}


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in file order."""
    raw = _read("facts.json")
    if not isinstance(raw, list):
        raise HeadlocError("facts.json must be a list of facts.")
    return tuple(Fact(**row) for row in raw)


@cache
def kinds() -> tuple[Fact, ...]:
    """A dictionary entry for every category word, such as ``cat-> animals``"""
    return tuple(
        Fact("kind", f"{word}->", word, f" {category}")
        for category, words in categories().items()
        for word in words
    )


def all_category_words() -> tuple[str, ...]:
    """The words of every category, in file order."""
    return tuple(chain.from_iterable(categories().values()))


def instruction_token(offset: int) -> str:
    """The token that states the add-k task without demonstrations, such as ``<+7>``."""
    return f"<+{offset}>"


def _read(name: str) -> object:
    path = _FOLDER / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HeadlocError(f"{name} is missing from the installed headloc package.") from error
