"""Packed rows that carry a label for every token, as a dataset on disk: a stored teacher, or human against model.

    DIRECTORY/rows.json                     what they are and how they were made; written last
              tokenizer.json                whose ids the tokens are
              SPLIT/00000/tokens.npy        uint16 [R, T]
                         /segment_ids.npy   uint16 [R, T], 1, 2, ... within a row; 0 is padding
                         /teacher_ids.npy   uint16 [R, T, k], the teacher's most probable next tokens
                         /teacher_logps.npy float16 [R, T, k], their log-probabilities in nats
                      or /is_human.npy      uint8 [R, T], 1 where a person wrote the token and 0 where a model did

With ``k`` 50 a token of a teacher takes 204 bytes. A part is written whole or not at all, so that whoever makes the
rows goes on with the first part that is missing. Positions, targets and masks follow from the segments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hhh_jax.atomic import new_path
from hhh_jax.data.loader import pair_order, stack
from hhh_jax.data.packing import Batch, empty_batch
from hhh_jax.errors import UserError
from hhh_jax.record import jsonable, write_json_atomic, write_text_atomic

FORMS = {"teacher": ("teacher_ids", "teacher_logps"), "discriminator": ("is_human",)}
"""Label arrays of each form of rows."""


class LabeledRows(NamedTuple):
    """One split, its parts mapped into memory.

    Attributes:
      parts: of each part, ``{array: [R, T, ...]}``.
      starts: int64, the number of the first row of each part, and of all rows at the end.
      vocab_size: tokens that there are.
    """

    parts: list[dict[str, np.ndarray]]
    starts: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(self, rows: Sequence[int] | np.ndarray, pad_id: int, count: int | None = None) -> Batch:
        """The rows of these numbers as a batch; up to `count` rows are padding."""
        found: list[tuple[dict[str, np.ndarray], int]] = []
        for row in rows:
            part = int(np.searchsorted(self.starts, row, side="right")) - 1
            found.append((self.parts[part], int(row - self.starts[part])))
        length = self.parts[0]["tokens"].shape[1]
        batch, _ = empty_batch(count or len(found), length, 0, pad_id)
        used = slice(0, len(found))

        def gather(name: str) -> np.ndarray:
            return np.stack([part[name][row] for part, row in found])

        segments = gather("segment_ids").astype(np.int32)
        tokens = gather("tokens").astype(np.int32)
        batch.tokens[used] = np.where(segments > 0, tokens, pad_id)
        batch.segment_ids[used] = segments
        batch.positions[used] = positions(segments)
        batch.targets[used, :-1] = tokens[:, 1:]
        batch.loss_mask[used, :-1] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        if "is_human" in self.parts[0]:
            batch.loss_mask[used] = segments > 0  # a token's own label, not the next one's
            batch.is_human = np.zeros((len(batch.tokens), length), np.float32)
            batch.is_human[used] = gather("is_human")
        else:
            k = self.parts[0]["teacher_ids"].shape[2]
            batch.teacher_ids = np.broadcast_to(np.arange(k, dtype=np.int32), (*batch.tokens.shape, k)).copy()
            batch.teacher_logps = np.full((*batch.tokens.shape, k), -np.log(k), np.float32)
            batch.teacher_ids[used] = gather("teacher_ids")
            batch.teacher_logps[used] = normalized(gather("teacher_logps").astype(np.float32), self.vocab_size)
        return batch


def positions(segment_ids_RxT: np.ndarray) -> np.ndarray:
    """The place of each token in its segment, int32 ``[R, T]``; 0 in padding."""
    t = segment_ids_RxT.shape[1]
    begins_RxT = np.ones_like(segment_ids_RxT, bool)
    begins_RxT[:, 1:] = segment_ids_RxT[:, 1:] != segment_ids_RxT[:, :-1]
    starts_RxT = np.maximum.accumulate(np.where(begins_RxT, np.arange(t), 0), axis=1)
    return np.where(segment_ids_RxT > 0, np.arange(t) - starts_RxT, 0).astype(np.int32)


def normalized(logps_xK: np.ndarray, vocab_size: int) -> np.ndarray:
    """Log-probabilities ``[..., k]`` without what rounding did to their sum, which would let the divergence from them
    fall below 0: lowered where they add up to more than 1, and to exactly 1 where k is the whole vocabulary."""
    total = np.logaddexp.reduce(logps_xK, axis=-1, keepdims=True)
    return logps_xK - (total if logps_xK.shape[-1] == vocab_size else np.maximum(total, 0))


class RowLoader:
    """Training batches of `rows` labeled rows, in a new permutation each epoch.

    Args:
      labeled: the training rows.
      rows: rows of a step.
      pad_id: what fills padding.
    """

    def __init__(self, labeled: LabeledRows, rows: int, pad_id: int):
        self.labeled, self.rows, self.pad_id = labeled, rows, pad_id

    def batch(self, step: int, seeds: Sequence[int]) -> Batch:
        """The batch of update `step` (from 0) for every seed, ``[G, R, T]``."""
        first, n = step * self.rows, len(self.labeled)
        return stack([self.labeled.batch(pair_order(n, seed, first, self.rows), self.pad_id) for seed in seeds])


def claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Writes making.json, what the rows are made from; or checks that the one there says the same.

    Raises UserError if it doesn't.
    """
    path = folder / "making.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json_atomic(path, dict(asked))
        return
    there, here = json.loads(path.read_text(encoding="utf-8")), jsonable(dict(asked))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{path}: these rows were begun with {name} = {there.get(name)!r}, not {here.get(name)!r}; "
                f"give another --output"
            )


def write_part(folder: Path, split: str, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a part so that it is there whole or not at all. Raises UserError if it can't be written."""
    with new_path(part_folder(folder, split, number), alone=True) as partial:
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)


def part_folder(folder: Path, split: str, number: int) -> Path:
    """Where a part lies once it is whole."""
    return folder / split / f"{number:05d}"


def finish(folder: Path, about: Mapping[str, Any], tokenizer_json: str) -> None:
    """Says that all parts are there.

    Args:
      about: ``form``, ``row_length``, ``rows`` of each split, and how the rows were made.
    """
    write_text_atomic(folder / "tokenizer.json", tokenizer_json)
    write_json_atomic(folder / "rows.json", dict(about))


def read_about(folder: Path) -> dict[str, Any]:
    """What rows.json says. Raises UserError if `folder` holds no finished rows."""
    try:
        return json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no finished labeled rows: {error}") from error


def open_rows(folder: Path, split: str) -> LabeledRows:
    """A split's rows. Raises UserError if a part is missing or not of the form that rows.json says."""
    about = read_about(folder)
    parts: list[dict[str, np.ndarray]] = []
    n_rows = 0
    while n_rows < about["rows"][split]:
        path = part_folder(folder, split, len(parts))
        try:
            part = {
                name: np.load(path / f"{name}.npy", mmap_mode="r")
                for name in ("tokens", "segment_ids", *FORMS[about["form"]])
            }
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}; make the rows again") from error
        parts.append(part)
        n_rows += len(part["tokens"])
    starts = np.cumsum([0, *(len(part["tokens"]) for part in parts)])
    return LabeledRows(parts, starts, about["vocab_size"])
