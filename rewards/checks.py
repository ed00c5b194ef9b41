"""A checker for rewards that people write: run it on two rows before a training run finds out.

It calls the reward several times, as trainers do and with what they may meet, and reports all that is wrong
at once.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

from PIL import Image

from rewards.text import completion_text

Values = list[float | None]
Rows = dict[str, list[Any]]
"""Every argument of a reward by name; lists with an entry per completion."""

TRAINERS_COLUMNS = frozenset(
    "images image completion_ids trainer_state log_extra log_metric prefixes".split()
)
"""What trainers fill in themselves; never None for a single row."""

LARGEST = 3.4028235e38  # trainers keep rewards in single precision


def check(
    reward: Callable[..., Any],
    /,  # rated data has a column of that name
    *,
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] | None = None,
    none_columns: Collection[str] | None = None,
    compares_within_batch: bool = False,
    tolerance: float = 1e-4,
    **columns: Sequence[Any],
) -> Values:
    """Call `reward` as a trainer does, in all the ways a trainer may, and hold its answers to the protocol.

    The protocol: called with keyword arguments, a reward returns one finite number, or None for "cannot
    judge", per completion. The checker looks at

    - `**columns`: trainers pass every column of the data, `log_extra`, `log_metric` and more;
    - count, types and finiteness of the answer, and of what it logs;
    - completions as strings and as messages (`[{"role": "assistant", "content": text}]`): the same rewards;
    - the same call twice, the rows in reverse, the first row alone: the same rewards;
    - empty completions;
    - each column in turn None for one row: no exception, and the same rewards for the other rows;
    - that no argument is changed;
    - `state_dict`, if there is one: it can be written as JSON and loaded;
    - `token_rewards`, if there is one: a number for every token.

    Asynchronous rewards are awaited. A state that a reward has (`state_dict`) is put back before every call
    and at the end. A reward with `prepare` is prepared with these rows; where it has a state too, that is
    done to a copy, and not at all if it cannot be copied (locks, open connections): prepare it yourself then.

    Args:
        reward: A function or an object that can be called.
        prompts: One per completion; without any rows, two made-up ones with the columns of `made_up_rows`.
        completions: Strings, or lists of messages.
        none_columns: Columns that may be None for a row; by default all but those that trainers fill in.
        compares_within_batch: True for a reward whose answer for one completion depends on the others in the
            call (a rank, a scale): answers to different rows are then not compared.
        tolerance: Largest relative or absolute difference of rewards that count as the same.
        **columns: The reward's columns, a list with an entry per prompt each.

    Returns:
        The rewards of the rows as given, so that their values can be looked at too.

    Raises:
        ValueError: Everything that breaks the protocol, as a list, with the name of the reward.

    Example:
        >>> import rewards
        >>> def words(completions, **columns):
        ...     return [len(completion.split()) for completion in completions]
        >>> rewards.check(words, prompts=["What is there?"], completions=["a cat"])
        Traceback (most recent call last):
            ...
        ValueError: words breaks the reward protocol:
        - completions as messages: raised AttributeError: 'list' object has no attribute 'split'
    """
    rows = _rows(prompts, completions, columns)
    examination = _Examination(_prepared(reward, rows), tolerance)
    values = examination.run(rows, none_columns, compares_within_batch)
    if examination.problems or values is None:
        listed = "".join(f"\n- {where}: {problem}" for problem, where in examination.problems.items())
        raise ValueError(f"{examination.name} breaks the reward protocol:{listed}")
    return values


def made_up_rows() -> Rows:
    """Two rows with the columns that the rewards of this package read, and the arguments of a trainer."""
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    return {
        "prompts": ["What is in the picture?", "How many squares are in the picture?"],
        "completions": ["There is 1 red circle beside a blue square.", "I see 3 green squares."],
        "image": list(pictures),
        "images": [[picture] for picture in pictures],
        "references": [["a red circle beside a blue square", "a circle and a square"], ["two green squares"]],
        "keywords": [["red circle", "blue square"], ["two", "green squares"]],
        "answer": ["1", "2"],
        "choices": [["1", "2", "3"], ["1", "2", "3"]],
        "completion_ids": [[5, 6, 7, 8, 2], [9, 10, 2]],
    }


def _rows(
    prompts: Sequence[Any] | None, completions: Sequence[Any] | None, columns: Mapping[str, Sequence[Any]]
) -> Rows:
    """All arguments by name, of the same length; made up if there are none."""
    if prompts is None and completions is None and not columns:
        return made_up_rows()
    if not prompts or not completions:
        raise ValueError("`prompts` and `completions` must hold a row at least; or give no column at all.")
    rows = {"prompts": prompts, "completions": completions, **columns}
    wrong = [f"`{name}` has {len(values)}" for name, values in rows.items() if len(values) != len(prompts)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} entries for {len(prompts)} prompts; give one each.")
    return {name: list(values) for name, values in rows.items()}


def _prepared(reward: Any, rows: Rows) -> Any:
    """The reward, or a copy that has seen the rows: statistics of two rows must not go into a run."""
    if not hasattr(reward, "prepare"):
        return reward
    if hasattr(reward, "state_dict"):
        try:
            reward = copy.deepcopy(reward)
        except Exception:  # whatever its parts raise
            return reward
    reward.prepare(rows.get)
    return reward


@dataclass
class _Examination:
    """Asks one reward many times and collects what is wrong: each problem once, with where it first arose."""

    reward: Any
    tolerance: float
    problems: dict[str, str] = field(default_factory=dict)
    state: Any = None

    @property
    def name(self) -> str:
        """`__name__` or class name, as trainers name a reward."""
        reward = self.reward
        while isinstance(reward, partial):
            reward = reward.func
        return str(getattr(reward, "__name__", type(reward).__name__))

    def run(self, rows: Rows, none_columns: Collection[str] | None, compares: bool) -> Values | None:
        """The rewards of `rows`, or None if there are none; problems are noted."""
        if not _takes_any_column(self.reward):
            self.note("signature", "must accept `**columns`: trainers pass every column of the data and more")
        self.keep_state()
        values = self.ask("as given", rows)
        known = dict(enumerate(values or ()))
        if not self.compare(
            "called again", rows, known, "Fix its seed; what it learns goes in `state_dict`."
        ):
            known = {}  # two calls never agree, so further ones say nothing
        form, other = _in_other_form(rows)
        self.compare(form, other, known, "Read both with `rewards.text.completion_text`.")
        known = {} if compares else known
        last = len(rows["prompts"]) - 1
        flipped = {last - row: value for row, value in known.items()}
        advice = "If it compares the completions of a call, pass `compares_within_batch=True`."
        self.compare("rows in reverse", _taken(rows, range(last, -1, -1)), flipped, advice)
        alone = {0: known[0]} if known else {}
        self.compare("first row alone", _taken(rows, [0]), alone, advice)
        self.ask("empty completions", _emptied(rows))
        self.check_none(rows, values or [], known, none_columns)
        if hasattr(self.reward, "token_rewards"):
            self.check_token_rewards(rows)
        self.restore_state()
        return values

    def ask(self, where: str, rows: Rows) -> Values | None:
        """One call, held to the protocol; None if it gave no numbers to go on with."""
        count = len(rows["completions"])
        log = _Log(count)
        asked, answer = self.call(
            where, self.reward, rows, log_extra=log.log_extra, log_metric=log.log_metric
        )
        for problem in log.problems:
            self.note(where, problem)
        if not asked:
            return None
        if isinstance(answer, (str, bytes, Mapping)) or not hasattr(answer, "__len__") or _is_scalar(answer):
            self.note(where, f"returned {answer!r}; return a list with one number or None per completion")
            return None
        if len(answer) != count:
            self.note(where, f"returned {len(answer)} rewards for {count} completions")
            return None
        values = [value.item() if _is_scalar(value) else value for value in answer]
        wrong = {row: value for row, value in enumerate(values) if not (value is None or _is_number(value))}
        for row, value in wrong.items():
            self.note(where, f"returned {value!r} for row {row}; return a finite number or None")
        return None if wrong else [None if value is None else float(value) for value in values]

    def call(self, where: str, function: Any, rows: Rows, **more: Any) -> tuple[bool, Any]:
        """Whether it returned at all, and what; on copies, from the same state, held to change nothing."""
        self.restore_state()
        arguments = {name: _copied(values) for name, values in rows.items()}
        before = {name: _traced(values) for name, values in arguments.items()}
        given = {**arguments, **more}
        if not _takes_any_column(function):
            given = {name: given[name] for name in inspect.signature(function).parameters if name in given}
        try:
            answer = _awaited(function(**given))
        except Exception as error:  # any at all: the code is the user's
            self.note(where, f"raised {type(error).__name__}: {error}")
            return False, None
        for name, values in arguments.items():
            if _traced(values) != before[name]:
                self.note(where, f"changed its argument `{name}`; work on a copy")
        return True, answer

    def compare(self, where: str, rows: Rows, expected: Mapping[int, float | None], advice: str) -> bool:
        """Ask, and hold the answer for some rows to what is known; whether they agree."""
        values = self.ask(where, rows)
        if values is None:
            return False
        for row, value in expected.items():
            if not self.same(values[row], value):
                self.note(where, f"gave {values[row]} for a completion that it gave {value} before. {advice}")
                return False
        return True

    def same(self, one: float | None, other: float | None) -> bool:
        """Whether two rewards are the same number up to rounding, or both None."""
        if one is None or other is None:
            return one is other
        return math.isclose(one, other, rel_tol=self.tolerance, abs_tol=self.tolerance)

    def check_none(
        self,
        rows: Rows,
        values: Values,
        known: Mapping[int, float | None],
        none_columns: Collection[str] | None,
    ) -> None:
        """Each column in turn None for the first row that has a reward."""
        row = next((index for index, value in enumerate(values) if value is not None), 0)
        if none_columns is None:
            none_columns = rows.keys() - TRAINERS_COLUMNS - {"prompts", "completions"}
        elif unknown := sorted(set(none_columns) - rows.keys()):
            raise ValueError(f"`none_columns` names {unknown}, which are no columns here.")
        others = {index: value for index, value in known.items() if index != row}
        for column in sorted(none_columns):
            holed = [None if index == row else value for index, value in enumerate(rows[column])]
            advice = f"Only the row whose `{column}` is None may change."
            self.compare(f"`{column}` None in row {row}", {**rows, column: holed}, others, advice)

    def check_token_rewards(self, rows: Rows) -> None:
        """A number for every token, here for every word."""
        texts = [completion_text(completion).split() for completion in rows["completions"]]
        prefixes = [[" ".join(words[:end]) for end in range(len(words) + 1)] for words in texts]
        dense = {**rows, "prefixes": prefixes, "completion_ids": [list(range(len(words))) for words in texts]}
        asked, answer = self.call("token_rewards", self.reward.token_rewards, dense, discount=0.9)
        if not asked:
            return
        if not hasattr(answer, "__len__") or len(answer) != len(texts):
            self.note("token_rewards", f"returned {answer!r}; return a list, or None, per completion")
            return
        for row, (numbers, words) in enumerate(zip(answer, texts, strict=True)):
            if numbers is None or (len(numbers) == len(words) and all(map(_is_number, numbers))):
                continue
            problem = f"returned {numbers!r} for the {len(words)} tokens of row {row}; return a number each"
            self.note("token_rewards", problem)

    def keep_state(self) -> None:
        """Remember the state that every call starts from."""
        if not hasattr(self.reward, "state_dict"):
            return
        state = self.reward.state_dict()
        try:
            self.state = json.loads(json.dumps(state))
            self.reward.load_state_dict(copy.deepcopy(self.state))
        except Exception as error:  # any at all: the code is the user's
            self.note("state", f"cannot be saved as JSON and loaded: {type(error).__name__}: {error}")
            self.state = None

    def restore_state(self) -> None:
        """Put it back."""
        if self.state is not None:
            self.reward.load_state_dict(copy.deepcopy(self.state))

    def note(self, where: str, problem: str) -> None:
        """Keep a problem, on one line, unless it arose elsewhere already."""
        self.problems.setdefault(" ".join(problem.split()), where)


@dataclass
class _Log:
    """The two helpers for logging that trainers offer, held to what they can take."""

    count: int
    problems: list[str] = field(default_factory=list)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        if len(values) != self.count:
            self.problems.append(
                f"logged {len(values)} values as {column!r} for {self.count} completions; log one each"
            )

    def log_metric(self, name: str, value: Any) -> None:
        value = value.item() if _is_scalar(value) else value
        if not _is_number(value):
            self.problems.append(f"logged {value!r} as the metric {name!r}; log a finite number")


def _takes_any_column(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _awaited(answer: Any) -> Any:
    """The answer itself; one that is awaited has a loop and a thread of its own, for a notebook runs one."""
    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, wait()).result()


def _is_scalar(value: Any) -> bool:
    return getattr(value, "ndim", None) == 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and abs(float(value)) <= LARGEST


def _taken(rows: Rows, places: Sequence[int]) -> Rows:
    return {name: [values[place] for place in places] for name, values in rows.items()}


def _in_other_form(rows: Rows) -> tuple[str, Rows]:
    """The rows with messages for strings, or strings for messages."""
    prompts, completions = (
        [completion_text(each) for each in rows[name]] for name in ("prompts", "completions")
    )
    if any(text != given for text, given in zip(completions, rows["completions"], strict=True)):
        return "completions as strings", {**rows, "prompts": prompts, "completions": completions}
    return "completions as messages", {
        **rows,
        "prompts": [[{"role": "user", "content": text}] for text in prompts],
        "completions": [[{"role": "assistant", "content": text}] for text in completions],
    }


def _emptied(rows: Rows) -> Rows:
    """The same rows, with nothing said."""
    empty = [
        "" if isinstance(each, str) else [{"role": "assistant", "content": ""}]
        for each in rows["completions"]
    ]
    ids: Rows = {"completion_ids": [[] for _ in empty]} if "completion_ids" in rows else {}
    return {**rows, "completions": empty, **ids}


def _copied(value: Any) -> Any:
    """Lists and mappings anew, what they hold shared: a reward that changes them spoils no later call."""
    if isinstance(value, list):
        return [_copied(each) for each in value]
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return value


def _traced(value: Any) -> Any:
    """Something that changes if the value does: lists by their entries, pictures by their bytes."""
    if isinstance(value, (list, tuple)):
        return [type(value), *map(_traced, value)]
    if isinstance(value, dict):
        return [(key, _traced(each)) for key, each in value.items()]
    if isinstance(value, (str, bytes, Real, type(None))):
        return value
    if hasattr(value, "tobytes"):  # pictures and arrays
        return hash(value.tobytes())
    return repr(value.tolist()) if hasattr(value, "tolist") else id(value)
