"""A judge's answers, remembered by a digest of the request: in memory, and in a file if wanted.

The file is SQLite, which several processes may read and write at one time. It holds digests and answers: no
caption, no picture, no API key.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from rewards.judging_answers import Answer

_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, cut_off INTEGER NOT NULL)"
)
# Seconds to wait for another process that writes.
_BUSY = 30.0


class AnswerCache:
    """Answers by key; the least recently used leave the memory first, the file keeps all."""

    def __init__(self, size: int, path: str | Path | None = None) -> None:
        """Open or make the file, so that a wrong path is known before anything was paid for."""
        if size < 0:
            raise ValueError(f"`cache_size` must be at least 0; got {size}.")
        self._size = size
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with closing(self._connection()) as connection, connection:
                    connection.execute(_TABLE)
            except sqlite3.DatabaseError as error:
                raise ValueError(
                    f"`cache_path` {str(path)!r} is no cache of a judge: {error}. Name another."
                ) from error

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers that are known."""
        keys = list(keys)
        found = {key: self._answers[key] for key in keys if key in self._answers}
        if self._path is not None:
            missing = [key for key in keys if key not in found]
            with closing(self._connection()) as connection:
                for key in missing:
                    row = connection.execute(
                        "SELECT text, cut_off FROM answers WHERE key = ?", (key,)
                    ).fetchone()
                    if row is not None:
                        found[key] = Answer(row[0], bool(row[1]))
        self._remember(found)
        return found

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Remember answers; where two processes answered one request, the later stays."""
        if not answers:
            return
        self._remember(answers)
        if self._path is not None:
            rows = [(key, answer.text, int(answer.cut_off)) for key, answer in answers.items()]
            with closing(self._connection()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def _remember(self, answers: Mapping[str, Answer]) -> None:
        for key, answer in answers.items():
            self._answers[key] = answer
            self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def _connection(self) -> sqlite3.Connection:
        # One per use: a connection belongs to its thread, and a trainer may call from a new one each time.
        return sqlite3.connect(str(self._path), timeout=_BUSY)
