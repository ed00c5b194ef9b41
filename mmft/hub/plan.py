"""What a push will send, in words: the answer to `--dry-run`, and what is said before anything is sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mmft.hub.files import Kind, LeftOut, SharedFile

UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What goes where.

    Attributes:
        repo_id: of the hub.
        kind: of run.
        private: whether the repository must be private.
        revision: branch to write to; None is the main one.
        shared: what is sent.
        left_out: what stays, and why.
        notes: what others should know.
        url: where it is, once it is there.
        deleted: files of an earlier push that are no part of this one, once they are gone.
        changed: whether anything was not there already, once it is there.

    Example:
        >>> from mmft.hub import push
        >>> from mmft.tiny import captioner_path
        >>> plan = push(captioner_path(), "me/captioner", dry_run=True)
        >>> print(plan.describe().splitlines()[0])
        me/captioner: 8 files, 3.9 MB
    """

    repo_id: str
    kind: Kind
    private: bool
    revision: str | None
    shared: Sequence[SharedFile]
    left_out: Sequence[LeftOut]
    notes: Sequence[str] = ()
    url: str | None = None
    changed: bool | None = None
    deleted: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.shared)

    def done(self, url: str, *, changed: bool, deleted: Sequence[str] = ()) -> PushPlan:
        """The same once it is there."""
        return dataclasses.replace(self, url=url, changed=changed, deleted=tuple(deleted))

    def describe(self) -> str:
        """The files with their sizes, what stays and why, and what would be done."""
        width = max((len(each.path) for each in self.shared), default=0)
        changed = " (a copy without what holds on this machine only)"
        sent = [
            f"  {each.path:{width}}  {readable_size(each.size):>8}{'' if each.content is None else changed}"
            for each in self.shared
        ]
        stays = [f"  {each.path}: {each.why}" for each in self.left_out]
        told = [f"note: {each}" for each in self.notes]
        branch = f", branch {self.revision}" if self.revision else ""
        secrecy = "private" if self.private else "public unless your organization makes it private"
        steps = [
            f"  1. create {self.repo_id} ({secrecy}) unless it exists",
            *([f"  2. create the branch {self.revision} unless it exists"] if self.revision else []),
            f"  {3 if self.revision else 2}. send what is not there yet; commit {count(self.shared)} at once",
            "     and delete there what an earlier push sent beside them (checkpoints stay)",
        ]
        return "\n".join(
            [
                f"{self.repo_id}{branch}: {count(self.shared)}, {readable_size(self.size)}",
                *sent,
                *(["left out:", *stays] if stays else []),
                *([f"deleted there: {', '.join(self.deleted)}"] if self.deleted else []),
                *told,
                *(["what a push does:", *steps] if self.url is None else []),
            ]
        )


def count(files: Sequence[object]) -> str:
    """How many, in words."""
    return f"{len(files)} file{'' if len(files) == 1 else 's'}"


def readable_size(size: float) -> str:
    """Three digits and a unit."""
    unit = 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {UNITS[unit]}"
