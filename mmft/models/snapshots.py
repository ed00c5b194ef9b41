"""Where the files of a model or of a run lie on this machine: a folder stays, a hub id is downloaded.

Left out: what is inside. transformers and PEFT download their own files; this is for those they do not know.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmft.errors import ConfigError

NOT_OF_A_RUN = ("checkpoint-*/*", "*.pt", "*.pth", "optimizer*")
"""Files of a repository that no one who loads its model needs."""


def local_folder(name: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of that name, or the local copy of that repository of the hub.

    Args:
        name: a folder, or a hub id (`user/name`).
        revision: branch, tag or commit of the hub's repository.

    Raises:
        ConfigError: it is neither, or the hub cannot be reached and there is no local copy.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    # A name with other than one slash, or that begins like a path, can be no repository.
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise ConfigError(f"{str(name)!r} is no folder. Give the folder of a run, or a hub id (`user/name`).")
    return _downloaded(str(name), revision)


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, revision=revision, ignore_patterns=[*NOT_OF_A_RUN])
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{name!r} is no folder, and the hub cannot be asked for it (no network, or HF_HUB_OFFLINE is "
            "set) and no local copy exists. Give an existing folder, or go online."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{name!r} is no folder, and the hub gives no such repository: {reason}. Check the name and "
            "`revision`, and log in (`hf auth login`) if it is private."
        ) from error
    return Path(found)
