"""Which of several lettered choices a completion settles on; none where it leaves that open.

A guess must not pay: what names two choices in the place that decides is read as no choice at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from rewards.reading import normalized

_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_ALONE = re.compile(r"[\s(\[{*$\"']*([A-Za-z])[\s)\]}*$\"'.:]*")
_LABELLED = re.compile(r"[\s(\[*]*([A-Za-z])\s*[)\].:*]+\s+(.+)", re.DOTALL)
_DECLARED = re.compile(
    r"\b(?:answer|option|choice)\b[\s*\"']{0,9}(?::|=|(?:is|was|would be|should be|must be)\b)[\s*:]{0,9}",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"\n|[.;!?](?=\s|$)|\b(?:because|since|as|but|not|rather|instead|while|whereas|which|so)\b", re.IGNORECASE
)
# Apart from Latin letters and digits only: languages without spaces write a choice between their signs.
_LATIN = r"[A-Za-z0-9\u00c0-\u024f]"
_LETTER = re.compile(rf"(?<!{_LATIN})(?<!{_LATIN}['\u2019-])([A-Za-z])(?!['\u2019-]?{_LATIN})")
_OPENED = re.compile(r"[(\[]\s*$")
_CLOSED = re.compile(r"\s*[)\]]")
_LINE_START = re.compile(r"(?:\A|\n)[\s*]*\Z")
_LABEL_END = re.compile(r"[)\].:*]+(?=\s|\Z)")
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor)|n['\u2019]t)(?:\s+(?:be|option|choice|answer))*[\s(\[*\"']*$",
    re.IGNORECASE,
)
# After "A" or "I" a word makes it the article or the pronoun, unless it is one of these.
_NOT_A_NOUN = frozenset("is was and or because since as but not seems".split())
_NEXT_WORD = re.compile(r"\s+([^\W\d_]+)")
# How far around a letter or a declaration is looked, so that reading a text of n signs takes time O(n).
_BEFORE, _CLAUSE = 40, 400


def letters_for(count: int) -> str:
    """The letters of `count` choices: "ABC" for three."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def read_choice(text: str, letters: str, choices: Sequence[str] = ()) -> str | None:
    """The letter of the choice that `text` settles on, or None.

    The first of these that finds a choice decides; if it finds several, there is none.

    1. The whole text: a letter ("B", "(b)", "B.", "**B**"), the text of a choice, or both ("B. two dogs"),
       which must then agree.
    2. The clause after "answer is", "answer:", "the correct option is" and the like: the letters in it, or
       else the texts of choices in it. It ends with the sentence or with a word as "because" or "not".
    3. Letters anywhere: capitals that stand alone, or letters of either case in brackets or as the label of a
       line ("b) ...").
    4. The texts of choices anywhere. One inside a longer one, as "dog" in "hot dog", does not count.

    The article and the pronoun are no choices: "a" and "I" (or "A" before a noun) count only in brackets or
    at the end of a clause. A letter that is denied ("not B", "isn't B") does not count either.
    """
    text = _LATEX_TEXT.sub(r"\1", unicodedata.normalize("NFKC", text))
    known = {letter: normalized(choice, "vqa") for letter, choice in zip(letters, choices, strict=False)}
    found = _whole(text, letters, known)
    if not found:
        clauses = [_clause(text, match.end()) for match in _DECLARED.finditer(text)]
        found = {letter for clause in clauses for letter in _letters(clause, letters, any_case=True)}
        found = found or {letter for clause in clauses for letter in _stated(clause, known)}
    found = found or set(_letters(text, letters, any_case=False)) or set(_stated(text, known))
    return found.pop() if len(found) == 1 else None


def _whole(text: str, letters: str, known: dict[str, str]) -> set[str]:
    alone = _ALONE.fullmatch(text)
    if alone:
        return {alone[1].upper()} & set(letters)
    labelled = _LABELLED.fullmatch(text)
    if labelled:
        stated = _same(labelled[2], known)
        return stated | {labelled[1].upper()} if stated else set()
    return _same(text, known)


def _same(text: str, known: dict[str, str]) -> set[str]:
    """The choices whose text this is; two choices may have the same text."""
    said = normalized(text, "vqa")
    return {letter for letter, choice in known.items() if choice and choice == said}


def _clause(text: str, start: int) -> str:
    end = _CLAUSE_END.search(text, start, start + _CLAUSE)
    return text[start : end.start() if end else start + _CLAUSE]


def _letters(text: str, letters: str, *, any_case: bool) -> Iterator[str]:
    for match in _LETTER.finditer(text):
        letter, before = match[1].upper(), text[max(0, match.start() - _BEFORE) : match.start()]
        if letter not in letters or _DENIED.search(before):
            continue
        end = match.end()
        in_brackets = _OPENED.search(before) and _CLOSED.match(text, end)
        if in_brackets or (_LINE_START.search(before) and _LABEL_END.match(text, end)):
            yield letter
        elif (any_case or match[1].isupper()) and not (letter in "AI" and _before_a_noun(text, end)):
            yield letter


def _before_a_noun(text: str, end: int) -> bool:
    following = _NEXT_WORD.match(text, end)
    return following is not None and following[1].lower() not in _NOT_A_NOUN


def _stated(text: str, known: dict[str, str]) -> set[str]:
    said = f" {normalized(text, 'vqa')} "
    # Longer ones first, each taken out, so that what they hold is not found again.
    found = set()
    for choice in sorted(set(known.values()), key=len, reverse=True):
        if choice and f" {choice} " in said:
            said = said.replace(f" {choice} ", "  ")
            found |= {letter for letter, text_of in known.items() if text_of == choice}
    return found
