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
    CHECKPOINT,
    CONFIG_FILE,
    EXPLAIN_FILE,
    MODEL_CONFIG_FILE,
    REWARD_MODEL_FILE,
    SharedFile,
    matches,
    read_settings,
)
from mmft.hub.metadata import LOADERS
from mmft.models.adapter_settings import ADAPTER_FILE
from mmft.models.packaged import model_path, packaged_name

OF_THE_PUSH = (
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
    "hub_revision", "push_to_hub_token", "push_to_hub_model_id", "push_to_hub_organization",
    "resume_from_checkpoint", "logging_dir", "output_file", "agent_path",
)  # fmt: skip
"""Settings that another person's run must not take over."""
PLACES = (
    "output_dir", "model_name_or_path", "dataset_name", "dataset_data_dir", "dataset_data_files", "path",
    "deepspeed",
)  # fmt: skip
"""Settings that may hold a path, beside those whose name ends as in `PLACE`. No other text is taken for one:
an instruction may begin with a slash."""
PLACE = re.compile(r".*_(path|dir|file)")
WORDS = ("instruction", "system_prompt", "prompt")
"""Settings that a model reads, which are sent as they are."""
REWRITTEN = (
    CARD_FILE, ADAPTER_FILE, AGENT_FILE, REWARD_MODEL_FILE, EXPLAIN_FILE, "summary.json", "metrics.jsonl",
    "report.html", f"checkpoint-*/{ADAPTER_FILE}", *(f"checkpoint-*/{name}" for name in CHECKPOINT),
)  # fmt: skip
"""What a run says of itself. Never a processor's files: a path there is a token or a word of a template."""
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
    change, rewritten = CHANGES.get(file.path), matches(file.path, REWRITTEN)
    if change is None and not rewritten:
        return file
    original = file.source.read_text(encoding="utf-8", errors="surrogateescape")
    text = original if change is None else change(original, there)
    text = without_places(text, there) if rewritten else text
    if text == original:
        return file
    return dataclasses.replace(file, content=text.encode("utf-8", errors="surrogateescape"))


# Single files


def _adapter_config(text: str, there: Destination) -> str:
    settings = json.loads(text)
    name = settings.get("base_model_name_or_path")
    known = _base(name, there, beside=True)
    if known == f"./{BASE_FOLDER}":
        there.notes.append(
            f"the model under the adapter goes along in {BASE_FOLDER}/: with PEFT alone, load it first with "
            f"from_pretrained({there.repo_id!r}, subfolder={BASE_FOLDER!r})."
        )
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
    if is_local(name) or (name is not None and name in _base_folders(there)):
        raise ConfigError(
            f"what {there.folder} holds belongs to the model in {name}, a folder that others do not have. "
            "Give the name that this model has on the hub (`--base-model`, `base=`), or write one whole "
            "model with `mmft merge` and push that."
        )
    return name


def _base_folders(there: Destination) -> set[str]:
    """What the run calls the folder of the model that it started from, whether it is there or not."""
    folders = (there.folder, read_settings(there.folder).get("output_dir", there.folder))
    return {str(Path(str(each)) / BASE_FOLDER) for each in folders}


def _config(text: str, there: Destination) -> str:
    settings = yaml.safe_load(text)
    if not isinstance(settings, dict):
        return text
    kept = {name: value for name, value in settings.items() if name not in OF_THE_PUSH}
    kept["output_dir"] = f"runs/{there.repo_id.rsplit('/', 1)[-1]}"
    if there.base is not None and is_local(kept.get("model_name_or_path")):
        kept["model_name_or_path"] = there.base
    told = [_note(each) for each in _strings(kept) if each.names != ("output_dir",) and each.is_here]
    there.notes.extend(dict.fromkeys(told))
    return yaml.safe_dump(_others(kept, there), sort_keys=False, allow_unicode=True)


def _note(place: _Text) -> str:
    """What others must do about a setting that names a place here."""
    remedy = "others put their own."
    if place.names[0] in ("reward_funcs", "eval_funcs") and place.names[-1] == "path":
        remedy = "push the reward model, and name its repository there."
    if _is_absolute(place.value):
        says = f"which the sent {CONFIG_FILE} does not say"
    else:
        says = f"by the path {place.value!r}, which others do not have"
    return f"`{place.names[0]}` names a place on this machine, {says}: {remedy}"


def _card(text: str, there: Destination) -> str:
    from huggingface_hub import ModelCard

    if not there.samples:
        text = without_rows(text)
    settings = read_settings(there.folder)
    for folder in {str(there.folder), str(settings.get("output_dir", there.folder))}:
        text = text.replace(repr(folder), repr(there.repo_id))
        text = text.replace(f"path: {folder}}}", f"path: {there.repo_id}}}")
        text = text.replace(f"path: {folder},", f"path: {there.repo_id},")
    beside = (there.folder / BASE_FOLDER / MODEL_CONFIG_FILE).is_file()
    for folder in _base_folders(there) if there.base is not None or beside else ():
        place = f"{there.repo_id!r}, subfolder={BASE_FOLDER!r}" if there.base is None else repr(there.base)
        text = text.replace(f"from_pretrained({folder!r}", f"from_pretrained({place}")
        text = text.replace(f"`{folder}`", f"`{there.base or f'{there.repo_id}/{BASE_FOLDER}'}`")
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


def _relative(value: str) -> str:
    """An absolute path with nothing but its last part."""
    return "./" + re.split(r"[/\\]", value.rstrip("/"))[-1] if _is_absolute(value) else value


@dataclass(frozen=True, slots=True)
class _Text:
    """A text in settings, and the names that lead to it."""

    names: tuple[str, ...]
    value: str

    @property
    def is_place(self) -> bool:
        """Whether it may be a path: one of `PLACES` leads to it."""
        return any(name in PLACES or PLACE.fullmatch(name) for name in self.names)

    @property
    def is_here(self) -> bool:
        """Whether it is a path that holds on this machine only."""
        if not self.is_place or model_path(self.value) != self.value:
            return False
        relative = self.value.startswith(("./", "../")) or Path(self.value).exists()
        return _is_absolute(self.value) or (relative and self.value not in LOADERS)


def _strings(value: Any, names: tuple[str, ...] = ()) -> Iterator[_Text]:
    """Every text in settings."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _strings(each, (*names, str(key)))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, names)
    elif isinstance(value, str):
        yield _Text(names, value)


def _others(value: Any, there: Destination, names: tuple[str, ...] = ()) -> Any:
    """The settings without the folders of this machine; words stay, whatever they begin with."""
    if isinstance(value, dict):
        return {name: _others(each, there, (*names, str(name))) for name, each in value.items()}
    if isinstance(value, list):
        return [_others(each, there, names) for each in value]
    if not isinstance(value, str) or (names and names[-1] in WORDS):
        return value
    if _Text(names, value).is_place:
        return _relative(value)
    return without_places(value, there) if _is_absolute(value) and not re.search(r"\s", value) else value


def without_places(text: str, there: Destination) -> str:
    """A text in which paths of this machine begin where others can follow: at the run, or nowhere."""
    settings = read_settings(there.folder)
    named = [each.value for each in _strings(settings) if each.is_place and _is_absolute(each.value)]
    places = {value.rstrip("/"): _relative(value) for value in named}
    places |= {str(Path.home()): "~", str(Path.cwd()): ".", str(there.folder.resolve()): "."}
    if _is_absolute(str(settings.get("output_dir", ""))):
        places[str(settings["output_dir"]).rstrip("/")] = "."
    for place in sorted((each for each in places if len(each) > 1), key=len, reverse=True):
        text = re.sub(rf"(?<![\w.:/-]){re.escape(place)}(?![\w.-])", places[place].replace("\\", r"\\"), text)
    return text
