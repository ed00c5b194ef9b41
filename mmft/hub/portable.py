"""The copies that are sent where a file says something that holds on this machine only.

The run folder itself is never changed. What cannot be said in another way (a base model that is a folder
here) is an error with its remedy.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmft.errors import ConfigError
from mmft.hub.files import (
    AGENT_FILE,
    BASE_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    MODEL_CONFIG_FILE,
    REWARD_MODEL_FILE,
    SharedFile,
    is_text,
    read_settings,
)
from mmft.models.adapters import ADAPTER_FILE
from mmft.models.packaged import model_path, packaged_name

OF_THE_PUSH = (
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
    "hub_revision", "push_to_hub_token", "push_to_hub_model_id", "push_to_hub_organization",
    "resume_from_checkpoint", "logging_dir", "output_file", "agent_path",
)  # fmt: skip
"""Settings that another person's run must not take over."""
ROWS_BEGIN, ROWS_END = "<!-- rows of the data -->", "<!-- end of the rows -->"
"""Around what a card shows of the data."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a run goes, and what is known of the place it comes from."""

    folder: Path
    repo_id: str
    base: str | None = None
    """The hub's name of the model under the adapter, where the run knows it by a folder."""
    license: str | None = None
    samples: bool = True
    notes: list[str] = field(default_factory=list)
    """What the copies leave out, in sentences."""


def make_portable(shared: list[SharedFile], there: Destination) -> list[SharedFile]:
    """The files with the contents that others can use.

    Raises:
        ConfigError: the model needs a base model that exists on this machine only.
    """
    return [_made_portable(each, there) for each in shared]


def _made_portable(file: SharedFile, there: Destination) -> SharedFile:
    if not is_text(file.path):
        return file
    original = file.source.read_text(encoding="utf-8", errors="surrogateescape")
    change = CHANGES.get(file.path)
    text = original if change is None else change(original, there)
    text = without_places(text, there)
    if text == original:
        return file
    return dataclasses.replace(file, content=text.encode("utf-8", errors="surrogateescape"))


# Single files


def _adapter_config(text: str, there: Destination) -> str:
    settings = json.loads(text)
    name = settings.get("base_model_name_or_path")
    known = _base(name, there, beside=True)
    if known == name:
        return text
    return json.dumps(settings | {"base_model_name_or_path": known}, indent=2, sort_keys=True)


def _spec(text: str, there: Destination) -> str:
    settings = json.loads(text)
    name = settings.get("base")
    if settings.get("backbone") == "full":  # the folder holds the whole model
        known = None if is_local(name) else name
    else:
        known = _base(name, there, beside=False)
    return text if known == name else json.dumps(settings | {"base": known}, indent=1) + "\n"


def _base(name: str | None, there: Destination, *, beside: bool) -> str | None:
    """What a base model is called where others look for it."""
    if there.base is not None:
        return there.base
    if beside and (there.folder / BASE_FOLDER / MODEL_CONFIG_FILE).is_file():
        return f"./{BASE_FOLDER}"
    name = None if name is None else packaged_name(name)
    if is_local(name):
        raise ConfigError(
            f"what {there.folder} holds belongs to the model in {name}, a folder that others do not have. "
            "Give the name that this model has on the hub (`--base-model`, `base=`), or write one whole model "
            "with `mmft merge` and push that."
        )
    return name


def _config(text: str, there: Destination) -> str:
    settings = yaml.safe_load(text)
    if not isinstance(settings, dict):
        return text
    kept = {name: value for name, value in settings.items() if name not in OF_THE_PUSH}
    kept["output_dir"] = f"runs/{there.repo_id.rsplit('/', 1)[-1]}"
    if there.base is not None and is_local(kept.get("model_name_or_path")):
        kept["model_name_or_path"] = there.base
    local = [name for name, value in _strings(kept) if name != "output_dir" and _is_absolute(value)]
    for name in dict.fromkeys(local):
        there.notes.append(
            f"`{name}` names a place on this machine, which the sent {CONFIG_FILE} does not say: others put "
            "their own."
        )
    kept = _relative(kept)
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _card(text: str, there: Destination) -> str:
    from huggingface_hub import ModelCard

    if not there.samples:
        text = without_rows(text)
    settings = read_settings(there.folder)
    for folder in {str(there.folder), str(settings.get("output_dir", there.folder))}:
        text = text.replace(repr(folder), repr(there.repo_id))
        text = text.replace(f"path: {folder}}}", f"path: {there.repo_id}}}")
        text = text.replace(f"path: {folder},", f"path: {there.repo_id},")
    title = Path(str(settings.get("output_dir", there.folder))).name
    text = text.replace(f"\n# {title}\n", f"\n# {there.repo_id.rsplit('/', 1)[-1]}\n", 1)
    if there.license is None and there.base is None:
        return text
    card = ModelCard(text)
    if there.license is not None:
        card.data["license"] = there.license
    if there.base is not None:
        card.data["base_model"] = there.base
    return str(card)


CHANGES: dict[str, Callable[[str, Destination], str]] = {
    ADAPTER_FILE: _adapter_config,
    AGENT_FILE: _spec,
    REWARD_MODEL_FILE: _spec,
    CONFIG_FILE: _config,
    CARD_FILE: _card,
}


def without_rows(card: str) -> str:
    """The card without what it shows of the data: from the first mark to the last, whatever lies between."""
    begin, end = card.find(ROWS_BEGIN), card.rfind(ROWS_END)
    if begin < 0:
        return card
    # Somebody may have removed the last one; then nothing says where the rows end.
    return card[:begin] + (card[end + len(ROWS_END) :].lstrip("\n") if end > begin else "")


# Places


def is_local(name: Any) -> bool:
    """Whether a model's name is a place on this machine; packaged models have a name that others know."""
    if not isinstance(name, str) or model_path(name) != name:
        return False
    return _is_absolute(name) or name.startswith((".", "~")) or Path(name).exists()


def _is_absolute(value: str) -> bool:
    return re.match(r"(/|~[/\\]|[A-Za-z]:[/\\]|\\\\).", value) is not None


def _relative(value: Any) -> Any:
    """Absolute paths with nothing but their last part."""
    if isinstance(value, dict):
        return {name: _relative(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_relative(each) for each in value]
    if isinstance(value, str) and _is_absolute(value):
        return "./" + re.split(r"[/\\]", value.rstrip("/"))[-1]
    return value


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name of the outermost setting, text) of everything in settings."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _strings(each, name or str(key))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, name)
    elif isinstance(value, str):
        yield name, value


def without_places(text: str, there: Destination) -> str:
    """A text in which paths of this machine begin where others can follow: at the run, or nowhere."""
    settings = read_settings(there.folder)
    places = {value.rstrip("/"): _relative(value) for _, value in _strings(settings) if _is_absolute(value)}
    places |= {str(Path.home()): "~", str(Path.cwd()): ".", str(there.folder.resolve()): "."}
    if _is_absolute(str(settings.get("output_dir", ""))):
        places[str(settings["output_dir"]).rstrip("/")] = "."
    for place in sorted((each for each in places if len(each) > 1), key=len, reverse=True):
        text = re.sub(rf"(?<![\w.:/-]){re.escape(place)}(?![\w.-])", places[place].replace("\\", r"\\"), text)
    return text
