"""The judge's memory: bounded, shared by processes, and no place for anything but answers."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rewards.judging_answers import Answer
from rewards.judging_cache import AnswerCache

_WRITE = """
import sys
from rewards.judging_answers import Answer
from rewards.judging_cache import AnswerCache
cache = AnswerCache(10, sys.argv[1])
for index in range(20):
    cache.put({f"{sys.argv[2]}{index}": Answer("7")})
"""


def test_it_remembers_and_returns_only_what_it_knows():
    cache = AnswerCache(10)
    cache.put({"a": Answer("7"), "b": Answer("8", cut_off=True)})
    assert cache.get(["a", "b", "c"]) == {"a": Answer("7"), "b": Answer("8", cut_off=True)}


def test_the_least_recently_used_answers_leave_first():
    cache = AnswerCache(2)
    cache.put({"a": Answer("1"), "b": Answer("2")})
    cache.get(["a"])
    cache.put({"c": Answer("3")})
    assert sorted(cache.get(["a", "b", "c"])) == ["a", "c"]


def test_the_file_outlives_the_memory_and_the_object(tmp_path: Path):
    path = tmp_path / "new" / "answers.sqlite"
    first = AnswerCache(0, path)
    first.put({"a": Answer("7", cut_off=True)})
    assert first.get(["a"]) == {"a": Answer("7", cut_off=True)}
    assert AnswerCache(5, path).get(["a", "b"]) == {"a": Answer("7", cut_off=True)}


def test_a_later_answer_replaces_an_earlier_one(tmp_path: Path):
    path = tmp_path / "answers.sqlite"
    AnswerCache(5, path).put({"a": Answer("7")})
    AnswerCache(5, path).put({"a": Answer("8")})
    assert AnswerCache(5, path).get(["a"]) == {"a": Answer("8")}


def test_two_processes_write_one_file(tmp_path: Path):
    path = tmp_path / "answers.sqlite"
    processes = [subprocess.Popen([sys.executable, "-c", _WRITE, str(path), name]) for name in "xy"]
    assert [process.wait() for process in processes] == [0, 0]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (40,)


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, and more than a hundred bytes of them, " * 3)
    with pytest.raises(ValueError, match=r"`cache_path` '.*notes.txt' is no cache of a judge"):
        AnswerCache(5, path)
    assert path.read_text().startswith("these are notes")


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="`cache_size` must be at least 0; got -1"):
        AnswerCache(-1)
