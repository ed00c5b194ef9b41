"""Arguments of commands on finished runs."""

from __future__ import annotations

import pytest

from mmft.cli.run_arguments import RunParser
from mmft.errors import ConfigError


def parser() -> RunParser:
    made = RunParser("mmft look", "Looks.")
    made.add_argument("run")
    made.add_argument("--base_model", default="none")
    made.add_argument("--dry-run", action="store_true")
    return made


@pytest.mark.parametrize("words", [["--base-model", "a_b"], ["--base_model", "a_b"], ["--base_model=a_b"]])
def test_options_are_taken_with_hyphens_and_with_underscores(words: list[str]):
    parsed = parser().parse_args(["my_run", *words, "--dry_run"])
    assert (parsed.run, parsed.base_model, parsed.dry_run) == ("my_run", "a_b", True)


def test_the_help_spells_options_with_hyphens():
    said = parser().format_help()
    assert "--base-model" in said
    assert "--dry-run" in said
    assert "_" not in said.replace("BASE_MODEL", "")


@pytest.mark.parametrize("words", [[], ["run", "--nonsense"], ["run", "--base", "x"]])
def test_mistakes_are_one_error_that_names_the_help(words: list[str]):
    with pytest.raises(ConfigError, match=r"\. See `mmft look --help`\."):
        parser().parse_args(words)
