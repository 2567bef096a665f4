"""Records of any kind from a folder that `hhh_jax.data.prepare` wrote."""

import json
from pathlib import Path

from hhh_jax.data.records import Record
from hhh_jax.data.shards import deserialize, read_records
from hhh_jax.errors import UserError


def load(folder: Path, kind: str, split: str = "test") -> list[Record]:
    """The records of a split, in the folder's order.

    Raises UserError, with what to do, for no such folder, records of another kind, or a split that it lacks.
    """
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no prepared data ({error}); make it by python -m hhh_jax.data.prepare --output={folder} ..."
        ) from None
    if card["kind"] != kind:
        raise UserError(f"{folder}: holds {card['kind']}, and {kind} are needed; prepare it with --kind={kind}")
    files = sorted(folder.glob(f"*-{split}.array_record-*"))
    if not files:
        raise UserError(f"{folder}: has no split {split}, but {', '.join(card['records'])}")
    return [deserialize(row, kind) for file in files for row in read_records(file)]
