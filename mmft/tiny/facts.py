"""Reads the facts that a caption states about a scene and judges them: a truth check beside the reward.

The grammar is that of `mmft.tiny.captions` with some freedom (`to the left of`, `two circles`, sentences).
A word of the lexicon outside of a well-formed noun phrase is a malformed statement, which is never true, so a
heap of right words earns nothing. Words outside of the lexicon state nothing.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmft.tiny.lexicon import COLOURS, DIAMETERS, RELATIONS, SHAPES, SceneObject, holds

ARTICLES = {"a", "an", "the", "one"}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
ANY_SHAPE = {"shape", "object"}
PLURALS = {f"{shape}s": shape for shape in (*SHAPES, *ANY_SHAPE)} | {"crosses": "cross"}
# After these a new noun phrase may begin; in `red blue circle` none stands before `blue`.
OPENERS = {",", ";", "and", "with", "of", *RELATIONS}
LEXICON = {*COLOURS, *DIAMETERS, *SHAPES, *ANY_SHAPE, *PLURALS, *RELATIONS}

TOKEN = re.compile(r"(?:to the )?(?:left|right) of\b|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Description:
    """What a noun phrase says; None where it says nothing."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    def fits(self, item: SceneObject) -> bool:
        """Whether the object is as described."""
        pairs = ((self.shape, item.shape), (self.colour, item.colour), (self.size, item.size))
        return all(said in (None, seen) for said, seen in pairs)


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement.

    `kind` is `object` (at least `count` objects fit `subject`), `count` (exactly so many), `relation` (an
    object that fits `subject` lies in `relation` to another that fits `other`) or `malformed` (never true;
    `count` is its place, so that every word out of place counts).
    """

    kind: str
    subject: Description = Description()
    count: int = 1
    relation: str | None = None
    other: Description | None = None
    text: str = ""

    def is_true(self, objects: Sequence[SceneObject]) -> bool:
        """Whether the scene of these objects bears the statement out."""
        fitting = [item for item in objects if self.subject.fits(item)]
        if self.kind == "object":
            return len(fitting) >= self.count
        if self.kind == "count":
            return len(fitting) == self.count
        if self.kind == "relation" and self.relation is not None and self.other is not None:
            others = [item for item in objects if self.other.fits(item)]
            pairs = itertools.product(fitting, others)
            return any(first is not second and holds(self.relation, first, second) for first, second in pairs)
        return False


@dataclass(frozen=True, slots=True)
class _Phrase:
    """A noun phrase and where it ends; `number` is None for a singular."""

    description: Description
    end: int
    definite: bool
    number: int | None = None


def stated_facts(caption: str) -> list[Fact]:
    """The distinct facts that a caption states, in the order in which it states them."""
    facts: dict[Fact, None] = {}
    for sentence in re.split(r"[.!?\n]+", caption.lower()):
        facts.update(dict.fromkeys(_sentence_facts(_tokens(sentence))))
    return list(facts)


def share_true(caption: str, objects: Sequence[SceneObject]) -> float | None:
    """The share of the stated facts that are true, or None if nothing is stated."""
    facts = stated_facts(caption)
    if not facts:
        return None
    return sum(fact.is_true(objects) for fact in facts) / len(facts)


def true_fact_share(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    facts: Sequence[Sequence[Mapping[str, Any]]],
    **columns: Any,
) -> list[float | None]:
    """The share of true facts among those that each completion states, in the reward protocol.

    `facts` is the column of that name of `load_scenes`. A completion that states nothing gets None.

    Example:
        >>> from mmft.tiny import load_scenes, true_fact_share
        >>> scene = load_scenes("validation", 1)[0]
        >>> scene["caption"]
        'a blue star.'
        >>> captions = [scene["caption"], "a purple heart.", "Nice."]
        >>> true_fact_share([None] * 3, captions, facts=[scene["facts"]] * 3)
        [1.0, 0.0, None]
    """
    return [
        share_true(_text(completion), [SceneObject(**item) for item in objects])
        for _, completion, objects in zip(prompts, completions, facts, strict=True)
    ]


def _text(completion: Any) -> str:
    """A completion's words, be it a string or chat messages with string or block content."""
    if isinstance(completion, str):
        return completion
    parts = []
    for message in completion:
        content = message["content"]
        parts.append(
            content if isinstance(content, str) else " ".join(block.get("text", "") for block in content)
        )
    return "\n".join(parts)


def _tokens(sentence: str) -> list[str]:
    """Words and punctuation; `to the left of` is the one token `left of`."""
    return [token.removeprefix("to the ") for token in TOKEN.findall(sentence)]


def _sentence_facts(tokens: list[str]) -> list[Fact]:
    """Scans one sentence from left to right: noun phrases, relations between them, and words out of place."""
    facts: list[Fact] = []
    mentions: Counter[Description] = Counter()
    anchor: Description | None = None  # the subject of the relations that follow
    relation: str | None = None  # a relation still waiting for its second object
    position, open_ = 0, True
    while position < len(tokens):
        token = tokens[position]
        phrase = _read_phrase(tokens, position) if open_ or token in ARTICLES or token in NUMBERS else None
        if phrase is not None:
            facts.append(_object_fact(phrase, mentions))
            if relation is not None and anchor is not None:
                facts.append(Fact("relation", anchor, relation=relation, other=phrase.description))
            # `X is left of Y and above Z`: both relations are X's.
            anchor = anchor if relation is not None else phrase.description
            relation, position, open_ = None, phrase.end, False
            continue
        if token in RELATIONS and anchor is not None and relation is None:
            relation = token
        elif token in LEXICON:
            facts.append(Fact("malformed", count=position, text=token))
        open_ = token in OPENERS or token not in LEXICON
        position += 1
    if relation is not None:
        facts.append(Fact("malformed", count=position, text=relation))
    return facts


def _object_fact(phrase: _Phrase, mentions: Counter[Description]) -> Fact:
    """A number states an exact count; the second `a red circle` of a sentence states that there are two."""
    if phrase.number is not None:
        return Fact("count", phrase.description, count=phrase.number)
    if phrase.definite:
        return Fact("object", phrase.description)
    mentions[phrase.description] += 1
    return Fact("object", phrase.description, count=mentions[phrase.description])


def _read_phrase(tokens: list[str], start: int) -> _Phrase | None:
    """`[article or number] [size] [colour] shape` from `start` on, or None if something else stands there."""
    position, number = start, None
    if position < len(tokens) and tokens[position] in {*ARTICLES, *NUMBERS}:
        number = NUMBERS.get(tokens[position])
        position += 1
    found = Description()
    for kind, words in (("size", DIAMETERS), ("colour", COLOURS)):
        if position < len(tokens) and tokens[position] in words:
            found = replace(found, **{kind: tokens[position]})
            position += 1
    word = tokens[position] if position < len(tokens) else ""
    noun = word if number is None else PLURALS.get(word)
    if noun not in SHAPES and noun not in ANY_SHAPE:
        return None
    found = replace(found, shape=noun if noun in SHAPES else None)
    return _Phrase(found, position + 1, definite=tokens[start] == "the", number=number)
