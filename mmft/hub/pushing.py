"""Pushing: what a folder holds goes to the hub in one commit, or not at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmft.errors import HubError
from mmft.hub.failures import reason, told_clearly
from mmft.hub.files import (
    AGENT_FILE,
    CARD_FILE,
    CONFIG_FILE,
    EXPLAIN_FILE,
    MODEL_CONFIG_FILE,
    REWARD_MODEL_FILE,
    REWARDS_FILE,
    SharedFile,
    collect,
    explains_given,
    is_drawn,
    is_ours,
    is_text,
    kind_of,
    read_settings,
)
from mmft.hub.plan import PushPlan
from mmft.hub.portable import Destination, make_portable
from mmft.hub.secrets import find_named, find_secrets, known_secrets
from mmft.hub.short_card import short_card
from mmft.models.adapter_settings import ADAPTER_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MARKS = (ADAPTER_FILE, MODEL_CONFIG_FILE, AGENT_FILE, REWARD_MODEL_FILE)
"""Files by which a repository is loaded as one thing or another."""


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    include_checkpoints: bool = False,
    samples: bool | None = None,
    base: str | None = None,
    license: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    endpoint: str | None = None,
) -> PushPlan:
    """Uploads a finished run in one commit; what the repository has already is not sent again.

    Args:
        folder: of the run.
        repo_id: `user/name`, or `name` under the token's own user.
        private: the repository must be private; an existing public one is refused.
        revision: branch to write to.
        commit_message: of the commit.
        include_checkpoints: also the weights of checkpoints.
        samples: also what shows rows of the data (report, samples, pictures). None: only if mmft drew them,
            and nothing explains a picture that somebody gave by hand.
        base: the hub's name of the pretrained model, where the run knows it by a folder of this machine.
        license: goes into the card's metadata.
        token: of the hub; the one of `hf auth login` or HF_TOKEN by default.
        dry_run: say what would be sent, and send nothing; needs neither network nor token.
        endpoint: of another hub than the default one.

    Returns:
        What was sent, `url` among it.

    Raises:
        ConfigError: there is nothing to push, or nobody else could load it.
        HubError: something may not be sent, or the hub refused or broke off.

    Example:
        >>> from peft import LoraConfig
        >>> from mmft import PPOConfig, PPOTrainer
        >>> from mmft.tiny import load_scenes
        >>> from rewards import bleu_reward
        >>> rows = load_scenes("train", 8).add_column("prompt", ["Describe the picture."] * 8)
        >>> args = PPOConfig(output_dir="runs/example", max_steps=1)
        >>> lora = LoraConfig(r=4, target_modules=r".*language_model.*_proj")
        >>> trainer = PPOTrainer("mmft/tiny-captioner", bleu_reward, args, rows, peft_config=lora)
        >>> _ = trainer.train()
        >>> trainer.save_model()
        >>> from mmft.hub import push
        >>> plan = push("runs/example", "me/example", dry_run=True)  # needs neither network nor token
        >>> plan.kind, plan.url
        ('policy', None)
        >>> [each.path for each in plan.shared if each.path.endswith(".safetensors")]
        ['adapter_model.safetensors', 'heads.safetensors']
    """
    check_repo_id(repo_id)
    choices: dict[str, Any] = {
        "private": private, "revision": revision, "include_checkpoints": include_checkpoints,
        "samples": samples, "base": base, "license": license, "token": token,
    }  # fmt: skip
    plan = make_plan(Path(folder), repo_id, **choices)
    if dry_run:
        return plan
    name = prepare_repo(repo_id, private=private, revision=revision, token=token, endpoint=endpoint)
    if name != repo_id:  # the files say where they are
        plan = make_plan(Path(folder), name, **choices)
    return _send(plan, name, commit_message or "Upload of a run by mmft", token, endpoint)


def make_plan(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    include_checkpoints: bool,
    samples: bool | None,
    base: str | None,
    license: str | None,
    token: str | None,
) -> PushPlan:
    """What would be sent; reads the folder and nothing else.

    Raises:
        ConfigError: there is nothing to push, or nobody else could load it.
        HubError: a file leads out of the folder or holds a secret.
    """
    kind = kind_of(folder)
    given = samples is None and explains_given(folder)
    if samples is None:
        samples = is_drawn(read_settings(folder)) and not given
    shared, left_out = collect(folder, kind, samples=samples, checkpoints=include_checkpoints)
    check_secrets(folder, shared, token)
    there = Destination(folder, repo_id, base=base, license=license, samples=samples)
    sent = make_portable(shared, there)
    check_secrets(folder, [each for each in sent if each.content is not None], token)
    names = {each.path for each in sent}
    if REWARDS_FILE in names and not samples:
        there.notes.append(
            f"{REWARDS_FILE} holds what rewards have gathered, which may count the words of the references."
        )
    if given:
        there.notes.append(f"{EXPLAIN_FILE} may explain pictures of your own, which stay with the report.")
    if CARD_FILE not in names:
        adapter = ADAPTER_FILE in names
        text = short_card(kind, repo_id, base or _base_of(folder), adapter=adapter, license=license)
        sent.append(SharedFile(CARD_FILE, folder / CARD_FILE, text.encode()))
        there.notes.append(f"the folder has no {CARD_FILE}; a short one is sent.")
    return PushPlan(repo_id, kind, private, revision, sent, left_out, tuple(there.notes))


def check_repo_id(repo_id: str) -> None:
    """Refuses what is no name of a repository.

    Raises:
        HubError: it is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"`repo_id` {repo_id!r}: {reason(error, '')}") from None


def check_secrets(folder: Path, shared: list[SharedFile], token: str | None) -> None:
    """Looks for tokens and keys in every text.

    Raises:
        HubError: there is one; the message says where, and not what.
    """
    from huggingface_hub import get_token

    settings = read_settings(folder)
    known = known_secrets(token or get_token(), settings)
    found = []
    for each in shared:
        if is_text(each.path):
            read = each.source.read_bytes() if each.content is None else each.content
            text = read.decode("utf-8", errors="replace")
            found += find_secrets(each.path, text, known)
            found += find_named(each.path, text, settings) if each.path == CONFIG_FILE else []
    if found:
        places = "; ".join(dict.fromkeys(map(str, found)))
        raise HubError(
            f"{folder} holds secrets, and nothing was sent: {places}. Take them out of these files (an API "
            "key belongs into an environment variable), and make them invalid where others could read them."
        )


def prepare_repo(
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Makes the repository and the branch unless they exist, and sees to it that they can be written to.

    Returns:
        The whole name, `user/name`.

    Raises:
        HubError: one cannot write there, or it is public and should be private.
    """
    check_repo_id(repo_id)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise HubError(
            f"`revision` {revision} is a commit, which cannot be written to. Give the name of a branch."
        )
    api = _api(token, endpoint)
    with told_clearly(repo_id, "cannot write to", api.endpoint, token):
        api.whoami()  # first: without a token some answers of the hub look like other mistakes
        name = str(api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id)
        api.auth_check(name, write=True)
        if private and api.repo_info(name).private is False:
            raise HubError(
                f"{name} exists and is public, but a private repository was asked for. Nothing was sent. "
                "Make it private in its settings, or give another name."
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(name, branch=revision, exist_ok=True)
    return name


def _api(token: str | None, endpoint: str | None) -> HfApi:
    from huggingface_hub import HfApi

    from mmft import __version__

    return HfApi(endpoint=endpoint, token=token, library_name="mmft", library_version=__version__)


def _send(plan: PushPlan, name: str, message: str, token: str | None, endpoint: str | None) -> PushPlan:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = _api(token, endpoint)
    additions = [
        CommitOperationAdd(each.path, str(each.source) if each.content is None else each.content)
        for each in plan.shared
    ]
    with told_clearly(name, "the push did not reach", api.endpoint, token):
        before = api.repo_info(name, revision=plan.revision).sha
        there = api.list_repo_files(name, revision=plan.revision)
        mine = {each.path for each in plan.shared}
        others = sorted(set(there) & set(MARKS) - mine)
        if others:
            raise HubError(
                f"{name} already holds another kind of model ({', '.join(others)}), which would be loaded "
                "instead of this one. Nothing was sent; give another name, or delete those files there."
            )
        # Weights that would be loaded with these, rows that are shown no more; the rest there is not ours.
        gone = sorted(each for each in there if is_ours(each) and each not in mine)
        deletions = [CommitOperationDelete(each) for each in gone]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions, *deletions]
        commit = api.create_commit(name, operations, commit_message=message, revision=plan.revision)
    branch = f"/tree/{plan.revision}" if plan.revision else ""
    return plan.done(f"{api.endpoint}/{name}{branch}", changed=commit.oid != before, deleted=gone)


def _base_of(folder: Path) -> str | None:
    """What the settings call the pretrained model."""
    name = read_settings(folder).get("model_name_or_path")
    if name is None and (folder / ADAPTER_FILE).is_file():
        name = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return name if isinstance(name, str) else None
