"""The record types that carry every dataset, and the counts of what was read, kept and dropped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import Any

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison: after `context`, `good` is better than `bad`.

    `group` is what splits are cut by (a source file, a question); it equals `id` for want of anything better.
    """

    id: str
    context: str
    good: str
    bad: str
    group: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text to model; `group` as in `Pair`."""

    id: str
    text: str
    group: str


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A question with one right option, `options[label]`; `category` names the part of its set, or is empty."""

    id: str
    context: str
    options: tuple[str, ...]
    label: int
    group: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class GroupedLabel:
    """A statement that is right (`label` 1) or wrong (0); some sets count a group only if all its items are right."""

    id: str
    context: str
    label: int
    group: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to go on from; `meta` has what its evaluation needs, by name: a target, tests, a toxicity."""

    id: str
    text: str
    group: str
    meta: dict[str, Any] = field(default_factory=dict)


Record = Pair | Document | MultipleChoice | GroupedLabel | Prompt
KINDS: dict[str, type[Record]] = {
    "pairs": Pair, "documents": Document, "choices": MultipleChoice, "labels": GroupedLabel, "prompts": Prompt,
}  # fmt: skip


@dataclass
class Counts:
    """What became of the input rows. Invariant: `read == kept + sum(dropped.values())`."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def keep(self) -> None:
        """Count one row that was read and kept."""
        self.read += 1
        self.kept += 1

    def drop(self, reason: str) -> None:
        """Count one row that was read and dropped for `reason`."""
        self.read += 1
        self.dropped[reason] += 1

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain JSON, reasons in alphabetical order."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}


def digest(record: Pair | Document) -> bytes:
    """16 bytes of the SHA-256 of a record's fields as JSON."""
    return hashlib.sha256(json.dumps(astuple(record)).encode()).digest()[:16]


def content_sha(records: Iterable[Pair] | Iterable[Document]) -> str:
    """SHA-256 (hex) of the records' digests in order; equal content gives equal hashes on every machine."""
    sha = hashlib.sha256()
    for record in records:
        sha.update(digest(record))
    return sha.hexdigest()


@dataclass
class Dataset:
    """Records under a name, with the counts of their reading and the hash of their content."""

    name: str
    records: list[Any]
    counts: Counts
    sha: str
