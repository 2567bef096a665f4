"""Folders as `hhh_jax.data.prepare` leaves them, of given records."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hhh_jax import atomic
from hhh_jax.data import shards
from hhh_jax.data.records import KINDS, Record

KIND = {record: kind for kind, record in KINDS.items()}


def prepared(path: Path, splits: Mapping[str, Sequence[Record]]) -> str:
    """A prepared folder of records by split, two train shards, with as much of a card as says what they are."""
    (path / "units").mkdir(parents=True)
    records = [(split, record) for split, part in splits.items() for record in part]
    for unit, part in enumerate((records[::2], records[1::2])):
        data = [(split, shards.serialize(record)) for split, record in part]
        shards.write_unit(path / "units" / f"{unit}", data, {})
    kind = KIND[type(records[0][1])]
    made = shards.write_folder(path / "final", "tiny", "about", kind, path / "units")
    atomic.remove(path / "units")
    for file in (path / "final").iterdir():
        file.rename(path / file.name)
    (path / "final").rmdir()
    for shard in made:
        shard["sha256"] = hashlib.sha256((path / shard["name"]).read_bytes()).hexdigest()
    (path / "card.json").write_text(json.dumps({"kind": kind, "shards": made}))
    return str(path)
