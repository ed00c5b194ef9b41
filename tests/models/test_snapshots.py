"""Folders and hub ids; downloads themselves are tested with a server (tests/hub)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmft.errors import ConfigError
from mmft.models.snapshots import local_folder


def test_a_folder_stays_where_it_is(tmp_path: Path):
    assert local_folder(tmp_path) == tmp_path
    assert local_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["nowhere", "./user/name", "/user/name", "a/b/c", "~user/name"])
def test_what_cannot_be_a_repository_is_not_asked_for(name: str):
    with pytest.raises(ConfigError, match=r"is no folder\. Give the folder of a run, or a hub id"):
        local_folder(name)


def test_without_network_a_repository_that_was_never_downloaded_is_refused():
    with pytest.raises(
        ConfigError, match=r"'some/run' is no folder, and the hub cannot be asked .*go online"
    ):
        local_folder("some/run")


def test_a_name_that_the_hub_does_not_allow_is_refused():
    with pytest.raises(ConfigError, match=r"'some/run!' is no folder, and the hub gives no such repository"):
        local_folder("some/run!")
