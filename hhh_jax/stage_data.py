"""What one run trains on and is tested on: records read by name, tokenized, and ready to be packed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from hhh_jax.data import datasets, labeled_rows
from hhh_jax.data.labeled_rows import RowLoader
from hhh_jax.data.loader import DocumentLoader, PairLoader
from hhh_jax.data.packing import TokenizedPair, tokenize_documents, tokenize_pairs
from hhh_jax.data.records import SPLITS, Counts, Dataset, Document, Pair
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
      validation, test: tokenized pairs or documents, or labeled rows.
      test_documents: the documents behind `test`; empty in stages on pairs.
      counts: what was read, kept and dropped in each split, and its hash.
      sha: hash of all that was read, first 12 digits.
    """

    name: str
    tokenizer: Tokenizer
    train: PairLoader | DocumentLoader | RowLoader
    train_pairs: list[TokenizedPair] | None
    validation: Any
    test: Any
    test_documents: list[Document]
    counts: dict[str, Any]
    sha: str

    @property
    def n_train_pairs(self) -> int:
        """Distinct training pairs, 0 in language-modeling stages."""
        return len(self.train_pairs or ())


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
    """Reads the three splits of ``data.source``; without a tokenizer, one is trained on the training split."""
    if c.objective.name in FORM_OF_ROWS:
        return _load_rows(c, tokenizer)
    return _load_documents(c, tokenizer) if c.objective.name == "lm" else _load_pairs(c, tokenizer, row_multiple)


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
        train_pairs=None, validation=splits["validation"], test=splits["test"], test_documents=[], counts=counts,
        sha=sha,
    )  # fmt: skip


def read_pairs(c: ml_collections.ConfigDict, name: str, split: str) -> Dataset:
    """The pairs of a task or file in one split, cut to the config's limit for it."""
    return datasets.load_pairs(
        name, split, bad_rows=c.data.bad_rows, seed=c.data.seed, limit=_limit(c, split) or None
    )


def _limit(c: ml_collections.ConfigDict, split: str) -> int:
    return {"train": c.data.limit, "validation": c.eval.validation_limit, "test": c.eval.limit}[split]


def tokenized_pairs(
    c: ml_collections.ConfigDict, records: Sequence[Pair], tokenizer: Tokenizer, counts: Counts
) -> list[TokenizedPair]:
    """Pairs in the form that the config asks for; what is dropped is counted in `counts`."""
    d = c.data
    return tokenize_pairs(
        records, tokenizer, d.max_tokens, d.row_length, counts, binarize=d.binarize, share_context=d.share_context
    )


def _load_pairs(c: ml_collections.ConfigDict, tokenizer: Tokenizer | None, row_multiple: int) -> StageData:
    tokenized, counts, shas = {}, {}, []
    for split in ("train", "validation", "test"):
        data = read_pairs(c, c.data.source, split)
        if tokenizer is None:  # the training split comes first
            texts = (text for pair in data.records for text in (pair.context, pair.good, pair.bad))
            tokenizer = train_tokenizer(texts, c.model.vocab_size)
        pairs = tokenized_pairs(c, data.records, tokenizer, data.counts)
        if not pairs:
            found = json.dumps(data.counts.as_dict())
            raise UserError(f"{c.data.source}: no pair is left in its {split} split: {found}")
        tokenized[split], counts[split] = pairs, data.counts.as_dict() | {"sha256": data.sha}
        shas.append(data.sha[:4])
    assert tokenizer is not None
    loader = PairLoader(
        tokenized["train"], c.batch.pairs, c.data.row_length, c.data.slots, tokenizer.pad_id, row_multiple,
        c.data.share_context, c.data.row_sizes,
    )  # fmt: skip
    return StageData(
        c.data.source, tokenizer, loader, tokenized["train"], tokenized["validation"], tokenized["test"], [],
        counts, "".join(shas),
    )  # fmt: skip


def _load_documents(c: ml_collections.ConfigDict, tokenizer: Tokenizer | None) -> StageData:
    documents: dict[str, list[Document]] = {}
    counts, shas = {}, []
    for split in ("train", "validation", "test"):
        data = datasets.load_documents(c.data.source, split, bad_rows=c.data.bad_rows)
        documents[split] = data.records if split == "train" else data.records[: _limit(c, split) or None]
        counts[split] = data.counts.as_dict() | {"sha256": data.sha}
        shas.append(data.sha[:4])
    if tokenizer is None:
        tokenizer = train_tokenizer((document.text for document in documents["train"]), c.model.vocab_size)
    tokenized: dict[str, Sequence[np.ndarray]] = {
        split: tokenize_documents(records, tokenizer) for split, records in documents.items()
    }
    counts["train"]["tokens"] = int(sum(len(document) for document in tokenized["train"]))
    loader = DocumentLoader(tokenized["train"], c.batch.rows, c.data.row_length, tokenizer.pad_id)
    return StageData(
        c.data.source, tokenizer, loader, None, tokenized["validation"], tokenized["test"], documents["test"],
        counts, "".join(shas),
    )  # fmt: skip
