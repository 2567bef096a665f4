"""What one run trains on and is tested on: records read by name, tokenized, and ready to be packed."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from hhh_jax.data import datasets, files, labeled_rows, token_store
from hhh_jax.data.labeled_rows import RowLoader
from hhh_jax.data.loader import DocumentLoader, FlippedPairs, PairLoader
from hhh_jax.data.packing import TokenizedPair
from hhh_jax.data.records import SPLITS, Counts, Dataset
from hhh_jax.data.token_store import PairForm
from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer
from hhh_jax.errors import UserError
from hhh_jax.storage import open_path

FORM_OF_ROWS = {"distillation": "teacher", "discriminator": "discriminator"}
"""Objectives that train on labeled rows, and which."""


class StageData(NamedTuple):
    """Data of one run.

    Attributes:
      name: of the source, as in the results table.
      tokenizer: the run's.
      train: training batches by step.
      train_pairs: the training pairs; None in language-modeling stages.
      validation, test: tokenized pairs or documents, or labeled rows; `test` is the split ``eval.split``.
      counts: what was read, kept and dropped in each split, and its hash.
      sha: hash of all that was read, first 12 digits.
    """

    name: str
    tokenizer: Tokenizer
    train: PairLoader | DocumentLoader | RowLoader
    train_pairs: Sequence[TokenizedPair] | None
    validation: Any
    test: Any
    counts: dict[str, Any]
    sha: str

    @property
    def n_train_pairs(self) -> int:
        """Distinct training pairs, 0 in language-modeling stages."""
        return len(self.train_pairs or ())


class Split(NamedTuple):
    """What a run uses of one split of a source.

    Attributes:
      items: tokenized pairs or documents.
      counts: what was read, kept and dropped.
      sha: hash of the records (`content_sha`).
    """

    items: Any
    counts: Counts
    sha: str


def stored_tokenizer(c: ml_collections.ConfigDict, source: dict[str, Any] | None) -> Tokenizer | None:
    """The tokenizer of ``data.tokenizer`` or else of the run that this one starts from; None if there is neither."""
    if c.data.tokenizer:
        try:
            text = open_path(c.data.tokenizer).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config key data.tokenizer: cannot read {c.data.tokenizer}: {error}") from error
        return Tokenizer.from_json(text)
    return Tokenizer.from_json(source["tokenizer"]) if source else None


def load(c: ml_collections.ConfigDict, tokenizer: Tokenizer | None, row_multiple: int) -> StageData:
    """Reads the splits of ``data.source``; without a tokenizer, one is trained on the training split."""
    if c.objective.name in FORM_OF_ROWS:
        return _load_rows(c, tokenizer)
    documents = c.objective.name == "lm"
    tokenizer = tokenizer or _train_tokenizer(c, documents)
    names = ("train", "validation", c.eval.split)
    splits = [load_split(c, c.data.source, name, tokenizer, documents) for name in names]
    counts = {name: s.counts.as_dict() | {"sha256": s.sha} for name, s in zip(names, splits, strict=True)}
    for name, split in zip(names, splits, strict=True):
        if not split.items:
            raise UserError(f"{c.data.source}: no pair is left in its {name} split: {json.dumps(counts[name])}")
    train, validation, test = (split.items for split in splits)
    d = c.data
    loader: PairLoader | DocumentLoader
    if documents:
        counts["train"]["tokens"] = int(train.sizes_D.sum())
        loader = DocumentLoader(train, c.batch.rows, d.row_length, tokenizer.pad_id)
    else:
        if d.flip:
            train = FlippedPairs(train, d.flip, d.seed, 2 if d.binarize else 1)
            counts["train"]["flipped"] = len(train.flipped)
        loader = PairLoader(
            train, c.batch.pairs, d.row_length, d.slots, tokenizer.pad_id, row_multiple, d.share_context, d.row_sizes
        )
    sha = "".join(split.sha[:4] for split in splits)
    return StageData(d.source, tokenizer, loader, None if documents else train, validation, test, counts, sha)


def _load_rows(c: ml_collections.ConfigDict, tokenizer: Tokenizer | None) -> StageData:
    """Labeled rows, whose tokens are those of one tokenizer. Raises UserError if they are not what the stage takes."""
    folder = Path(c.data.source)
    about = labeled_rows.read_about(folder)
    form = FORM_OF_ROWS[c.objective.name]
    if about["form"] != form:
        raise UserError(f"{folder}: holds rows of form {about['form']}, and stage {c.stage} takes {form}")
    if about["row_length"] != c.data.row_length:
        raise UserError(f"{folder}: rows have {about['row_length']} tokens; set data.row_length={about['row_length']}")
    theirs = Tokenizer.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer is not None and tokenizer.sha != theirs.sha:
        raise UserError(f"{folder}: made with another tokenizer than that of {c.init.checkpoint or c.data.tokenizer}")
    splits = {split: labeled_rows.open_rows(folder, split) for split in SPLITS}
    counts = {split: {"read": len(rows), "kept": len(rows), "dropped": {}} for split, rows in splits.items()}
    sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return StageData(
        name=c.data.source, tokenizer=theirs, train=RowLoader(splits["train"], c.batch.rows, theirs.pad_id),
        train_pairs=None, validation=splits["validation"], test=splits["test"], counts=counts, sha=sha,
    )  # fmt: skip


def load_split(
    c: ml_collections.ConfigDict, name: str, split: str, tokenizer: Tokenizer, documents: bool = False
) -> Split:
    """The pairs (or documents) of a task, file or folder in one split, cut to the config's limit for it."""
    d = c.data
    form = None if documents else PairForm(
        d.max_tokens, d.row_length, d.binarize, d.share_context, d.end_of_context
    )
    if token_store.is_large(name):
        source = _source(c, name, split, documents)
        store = token_store.on_disk(source, tokenizer, form)
        chosen = _choose(c, source, split, store.arrays["places"], store.arrays["named"])
    else:
        data = _read(c, name, split, documents)
        store = token_store.in_memory(data.records, data.counts, tokenizer, form)
        chosen = np.arange(len(data.records))
    return Split(*store.choose(chosen))


def _read(c: ml_collections.ConfigDict, name: str, split: str, documents: bool) -> Dataset:
    limit, bad_rows = _limit(c, split, documents), c.data.bad_rows
    if documents:
        return datasets.load_documents(name, split, bad_rows=bad_rows, limit=limit)
    return datasets.load_pairs(name, split, bad_rows=bad_rows, seed=c.data.seed, limit=limit)


def _limit(c: ml_collections.ConfigDict, split: str, documents: bool) -> int | None:
    train = 0 if documents else c.data.limit
    return {"train": train, "validation": c.eval.validation_limit}.get(split, c.eval.limit) or None


def _source(c: ml_collections.ConfigDict, path: str, split: str, documents: bool) -> files.Source:
    own = split if files.has_split(path, split) else None
    return files.Source(path, "documents" if documents else "pairs", c.data.bad_rows, own)


def _choose(
    c: ml_collections.ConfigDict, source: files.Source, split: str, places_N: np.ndarray, named_N: np.ndarray
) -> np.ndarray:
    """The numbers of the records that a run uses, in its order: those that `_read` would return."""
    chosen = np.arange(len(places_N)) if source.split else files.cut_split(places_N, named_N, split, source.path)
    documents = source.kind == "documents"
    if not documents:
        chosen = chosen[datasets.order(len(chosen), split, c.data.seed)]
    return chosen[: _limit(c, split, documents)]


def _train_tokenizer(c: ml_collections.ConfigDict, documents: bool) -> Tokenizer:
    name, size = c.data.source, c.model.vocab_size
    if not token_store.is_large(name):
        return train_tokenizer(token_store.texts(_read(c, name, "train", documents).records), size)
    source = _source(c, name, "train", documents)
    choose = functools.partial(_choose, c, source, "train")
    return token_store.trained_tokenizer(source, size, [c.data.seed, _limit(c, "train", documents)], choose)
