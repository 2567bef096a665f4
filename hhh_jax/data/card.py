"""A data card: what went into a prepared folder, what was left out, and what to know before training on it.

One streaming pass over the finished shards, whose memory the held-out splits bound. What is counted over a part of the
records says so; shards are shuffled, so the first records are a fair sample.

Two texts are the same here if they are after white space and case are normalized. A held-out record *overlaps* if its
context occurs in train, or, of a pair without context, one of its sides; documents, labels and prompts are context as a
whole. Where a held-out split overlaps, those of its groups that train doesn't have and none of whose records overlap
are written beside it as SPLIT_no_overlap: a group is the unit of splitting, and some sets score it as one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hhh_jax.atomic import new_path
from hhh_jax.data import card_page, predictors
from hhh_jax.data.card_stats import CONTEXT, GROUP, ITEM, MAX_TOKENS, OTHER, SplitStats, texts
from hhh_jax.data.records import Record
from hhh_jax.data.shards import deserialize, read_records, write_json, write_records
from hhh_jax.data.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from hhh_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers

NO_OVERLAP = "_no_overlap"
VOCAB_SIZE, VOCAB_BYTES = 8192, 2**23  # of a tokenizer trained for the card, and of the text that it is trained on
TRAIN_SAMPLE = predictors.MAX_TRAIN_PAIRS, 2**25  # records and bytes for predictors
HELD_OUT_SAMPLE = 5_000, 2**25
TRAIN_DIGESTS = 20_000_000  # records of train among which duplicates and groups are counted
EXAMPLES, EXAMPLE_CHARACTERS = 3, 1200
BATCH = 128, 2**22  # records and bytes


def write_card(directory: Path, facts: dict[str, Any], *, tokenizer: str | Path | None = None, seed: int = 0) -> None:
    """Write card.json, card.html and the overlap-free splits into a prepared folder.

    Args:
      directory: a finished TFDS array_record folder of one kind.
      facts: what card.json says of where the records come from; the statistics are added to them.
      tokenizer: a tokenizer.json to count tokens with; else one of 8192 tokens is trained on the first records.
      seed: of the folds in which predictors are trained where there is no train split.

    Writing it again gives the same files. Raises UserError if the tokenizer can't be read.
    """
    folder = _Folder(directory, facts["kind"], facts["shards"])
    bpe, tokenizer_facts = _tokenizer(tokenizer, folder.batches(folder.splits[0]))
    stats = {split: SplitStats(HELD_OUT_SAMPLE) for split in folder.splits if split != "train"}
    for split, counted in stats.items():
        for batch in folder.batches(split):
            counted.add(batch, bpe)
    free: dict[str, np.ndarray] = {}
    overlap: dict[str, dict[str, Any]] = {}
    if "train" in folder.splits:
        digests = {split: counted.digests() for split, counted in stats.items()}
        known = Known(list(digests.values()))
        stats = {"train": SplitStats(TRAIN_SAMPLE, TRAIN_DIGESTS), **stats}
        for batch in folder.batches("train"):
            known.look_at(stats["train"].add(batch, bpe))
        for split, digests_Nx5 in digests.items():
            overlap[split], free[split] = known.overlap(digests_Nx5)
    subsets = {split: free_N for split, free_N in free.items() if free_N.any() and not free_N.all()}
    shards = folder.write_subsets(subsets)
    card = facts | {
        "records": facts["records"] | {shard["split"]: shard["records"] for shard in shards},
        "shards": facts["shards"] + shards,
        "tokenizer": tokenizer_facts,
        "max_tokens": MAX_TOKENS,
        "statistics": {split: counted.as_dict() for split, counted in stats.items()},
        "overlap": overlap,
        "predictors": _predictors(stats, subsets, facts["kind"], seed),
        "examples": [_example(record) for record in stats[folder.splits[0]].sample[:EXAMPLES]],
    }
    write_json(directory / "card.json", card)
    with new_path(directory / "card.html") as partial:
        partial.write_text(card_page.render(card), encoding="utf-8", errors="backslashreplace")


class Known:
    """Which digests of the held-out splits occur in train, whose digests pass by."""

    def __init__(self, held_out: Sequence[np.ndarray]) -> None:
        """`held_out`: uint64 [N, 5] a split, as `SplitStats.digests` returns them."""
        rows_Nx5 = np.concatenate([np.zeros((0, 5), np.uint64), *held_out])
        self._digests = [np.unique(rows_Nx5[:, columns]) for columns in _COLUMNS]
        self._seen = [np.zeros(len(digests), bool) for digests in self._digests]

    def look_at(self, rows_Nx5: np.ndarray) -> None:
        """Take note of some of train's digests."""
        for columns, digests, seen in zip(_COLUMNS, self._digests, self._seen, strict=True):
            passing = rows_Nx5[:, columns].ravel()
            place = np.searchsorted(digests, passing)
            place, passing = place[place < len(digests)], passing[place < len(digests)]
            seen[place[digests[place] == passing]] = True

    def overlap(self, rows_Nx5: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """How many of a split's records have their item, context or group in train, and are in a group free of
        overlap; and which these are, bool [N]."""
        items_N, contexts_N, groups_N = (
            np.isin(rows_Nx5[:, columns], digests[seen]).any(axis=1)
            for columns, digests, seen in zip(_COLUMNS, self._digests, self._seen, strict=True)
        )
        group_N = rows_Nx5[:, GROUP]
        free_N = ~np.isin(group_N, group_N[contexts_N | groups_N])
        counts = {"items": items_N, "contexts": contexts_N, "groups": groups_N, "free": free_N}
        return {"records": len(rows_Nx5), **{name: int(is_N.sum()) for name, is_N in counts.items()}}, free_N


_COLUMNS = ([ITEM], [CONTEXT, OTHER], [GROUP])


class _Folder:
    """The records of a prepared folder. `splits` has train first, and none that a card added."""

    def __init__(self, directory: Path, kind: str, shards: Sequence[dict[str, Any]]) -> None:
        self._directory, self._kind = directory, kind
        self._paths: dict[str, list[Path]] = {}
        for shard in shards:
            self._paths.setdefault(shard["split"], []).append(directory / shard["name"])
        self.splits = sorted(self._paths, key=lambda split: split != "train")

    def batches(self, split: str) -> Iterator[list[Record]]:
        """The records of a split in order, a few at a time."""
        batch, size = [], 0
        for row in self._rows(split):
            batch.append(deserialize(row, self._kind))
            size += len(row)
            if len(batch) == BATCH[0] or size >= BATCH[1]:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _rows(self, split: str) -> Iterator[bytes]:
        return itertools.chain.from_iterable(read_records(path) for path in self._paths[split])

    def write_subsets(self, free: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """Make SPLIT_no_overlap of each split's free records (bool [N]), and no other; the card's line of each."""
        path = self._directory / "dataset_info.json"
        info = json.loads(path.read_text(encoding="utf-8"))
        info["splits"] = [split for split in info["splits"] if split["name"] in self._paths]
        shards = []
        for split, free_N in free.items():
            name, n = f"{split}{NO_OVERLAP}", int(free_N.sum())
            shard = self._directory / f"{info['name']}-{name}.array_record-00000-of-00001"
            with new_path(shard) as partial:
                write_records(partial, itertools.compress(self._rows(split), free_N))
            size = sum(map(len, read_records(shard)))
            shards.append({"name": shard.name, "split": name, "records": n, "bytes": size, "sha256": sha256(shard)})
            entry = {"name": name, "numBytes": str(size), "shardLengths": [str(n)]}
            info["splits"].append(info["splits"][0] | entry)
        write_json(path, info)
        return shards


def _tokenizer(path: str | Path | None, batches: Iterable[list[Record]]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer to count with, and what the card says of it."""
    import tokenizers

    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
            bpe = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: can't be read as a tokenizer.json of Hugging Face tokenizers: {error}") from None
        name, digest = Path(path).name, sha256(Path(path))
    else:
        sample: list[str] = []
        n = size = 0
        for record in itertools.chain.from_iterable(batches):
            if size >= VOCAB_BYTES:
                break
            words = [text for _, text in texts(record)]
            sample += words
            n, size = n + 1, size + sum(len(word) for word in words)
        text = _train(sample)
        bpe = tokenizers.Tokenizer.from_str(text)
        name = f"byte-level BPE trained on the first {n:,} records"
        digest = hashlib.sha256(text.encode()).hexdigest()
    return bpe, {"name": name, "vocab_size": bpe.get_vocab_size(), "sha256": digest}


def _train(sample: list[str]) -> str:
    """The largest vocabulary up to VOCAB_SIZE that the text gives, halving; 258 takes no text at all."""
    size = VOCAB_SIZE
    while size > MIN_VOCAB_SIZE:
        try:
            return train_tokenizer(sample, size).to_json()
        except UserError:
            size //= 2
    return train_tokenizer(sample, MIN_VOCAB_SIZE).to_json()


def _predictors(stats: dict[str, SplitStats], free: dict[str, np.ndarray], kind: str, seed: int) -> dict[str, Any]:
    """Accuracies of trivial predictors on the first held-out records: on test and its like, or else on validation."""
    held_out = [split for split in stats if split not in ("train", "validation")] or [*stats.keys() - {"train"}]
    held_out = [split for split in held_out if stats[split].sample]
    train = predictors.affordable(stats["train"].sample) if "train" in stats else []
    if kind not in predictors.KINDS or not held_out:
        return {}
    scores = predictors.held_out_scores(train, [record for split in held_out for record in stats[split].sample], seed)
    end = np.cumsum([len(stats[split].sample) for split in held_out])
    scored_by_group = kind == "labels" or "majority" in scores  # pairs of the same two labels throughout
    accuracy: dict[str, Any] = {}
    group_accuracy: dict[str, Any] = {}
    for split, stop in zip(held_out, end, strict=True):
        sample = stats[split].sample
        parts = {split: np.ones(len(sample), bool)}
        if split in free:
            parts[f"{split}{NO_OVERLAP}"] = free[split][: len(sample)]
        for part, mask_I in parts.items():
            if not mask_I.any():
                continue
            own = {name: score_I[stop - len(sample) : stop][mask_I] for name, score_I in scores.items()}
            accuracy[part] = {name: predictors.accuracy(score_I) for name, score_I in own.items()}
            groups = [record.group for record, chosen in zip(sample, mask_I, strict=True) if chosen]
            sizes = set(Counter(groups).values())
            if scored_by_group and len(sample) == stats[split].records and len(sizes) == 1 and sizes != {1}:
                group_accuracy[part] = {
                    name: predictors.accuracy(predictors.by_group(score_I, groups)) for name, score_I in own.items()
                }
    return {"trained_on": len(train), "accuracy": accuracy, "group_accuracy": group_accuracy}


def _example(record: Record) -> dict[str, Any]:
    """A record as plain JSON, its texts shortened."""

    def shorten(value: Any) -> Any:
        if isinstance(value, str) and len(value) > EXAMPLE_CHARACTERS:
            return value[:EXAMPLE_CHARACTERS] + f" … ({len(value) - EXAMPLE_CHARACTERS:,} more characters)"
        return [shorten(item) for item in value] if isinstance(value, tuple) else value

    fields = {name: shorten(value) for name, value in dataclasses.asdict(record).items()}
    if "meta" in fields:
        fields["meta"] = {name: shorten(value) for name, value in fields["meta"].items()}
    return fields


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
