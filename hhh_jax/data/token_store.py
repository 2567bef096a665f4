"""Tokenized records as a few flat arrays, in memory or mapped from files, of which items are cut when asked for.

Large sources are tokenized once, by the processes of a pool, and kept in a cache folder: `HHH_JAX_CACHE_DIR`, or
hhh_jax/tokens in the user's cache folder. It can be removed at any time.

    KEY.partial/000017.npz   a part, records of some MiB of text; there whole or not at all: a killed run goes on
    KEY/tokens.bin, ...      the arrays of all parts, one behind the other
        meta.json            their types and shapes, and the counts of reading

KEY hashes the state of the files that are read, the tokenizer, and all settings that tokens depend on; neither the
split that is cut from the records, their order, nor how many are used, which are choices among what is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hhh_jax.atomic import new_path, remove, write_errors
from hhh_jax.data import files
from hhh_jax.data.packing import REASONS, TokenizedDocuments, TokenizedPair, tokenize_documents, tokenize_each
from hhh_jax.data.records import Counts, Document, Pair, digest
from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer
from hhh_jax.data.unchanged import input_state
from hhh_jax.data.workers import Call, pool

LARGE = 4 * 2**20  # bytes of a file or folder from which on tokens are kept on disk
SHARED = 64 * 2**20  # and from which on processes share the work
PART = 4 * 2**20  # characters of text
TRAINED_ON = 2**30  # characters that a tokenizer is trained on
_ENDS = ("ends", "name_ends")  # count within a part
_FORMAT = 1

Arrays = dict[str, np.ndarray]


class PairForm(NamedTuple):
    """How pairs are tokenized: arguments of `tokenize_pairs`."""

    max_tokens: int
    row_length: int
    binarize: bool = False
    share_context: bool = True
    end_of_context: bool = True


class Store(NamedTuple):
    """Tokenized records: pairs, or documents where `form` is None.

    A record makes one item, or two if pairs are binarized, or none if it can't be used.

    Attributes:
      arrays: of N records: ``digests`` uint8 [N, 16]; ``places`` and ``named`` [N], see `files.places`; ``reasons``
        uint8 [N], 0 or from 1 on which of REASONS says why it is not used. Of M items: ``tokens``, uint16 where the
        vocabulary allows, else int32, and ``ends`` int64 [M * S], where each of its S sequences ends in them (3 of a
        pair, 1 of a document); ``n_bytes`` int64 [M, 2] or [M, 1], of the texts; ``names`` uint8, UTF-8 of id and
        group, and ``name_ends`` int64 [M * 2].
      counts: of reading; records that can't be used are among the kept.
      form: of pairs.
    """

    arrays: Mapping[str, np.ndarray]
    counts: Counts
    form: PairForm | None

    def choose(self, records_R: np.ndarray) -> tuple[TokenizedPairs | StoredDocuments, Counts, str]:
        """The items of some records in that order, the counts with these alone as read, and a hash of the content.

        The hash is `content_sha` of the records.
        """
        reasons_R = self.arrays["reasons"][records_R]
        dropped = self.counts.dropped + Counter(
            {reason: int((reasons_R == code).sum()) for code, reason in enumerate(REASONS, 1)}
        )
        kept = int((reasons_R == 0).sum())
        counts = Counts(len(records_R) + self.counts.dropped.total(), kept, +dropped)
        sha = hashlib.sha256(self.arrays["digests"][records_R].tobytes()).hexdigest()
        used_N = self.arrays["reasons"] == 0
        each = 2 if self.form and self.form.binarize else 1
        first_N = each * (np.cumsum(used_N) - used_N)
        items = (first_N[records_R[reasons_R == 0], None] + np.arange(each)).ravel()
        return (StoredDocuments if self.form is None else TokenizedPairs)(self.arrays, items), counts, sha


class TokenizedPairs(Sequence[TokenizedPair]):
    """Pairs of a store, by number or slice.

    Args:
      arrays: of the store.
      items_P: which of its items, in order.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], items_P: np.ndarray):
        self._arrays, self._items_P = arrays, items_P

    def __len__(self) -> int:
        return len(self._items_P)

    def __getitem__(self, i: Any) -> Any:
        """A `TokenizedPair`; a list of a slice."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        item = int(self._items_P[i])
        context, good, bad = (ids.astype(np.int32) for ids in _cut(self._arrays, "tokens", "ends", item, 3))
        name, group = _names(self._arrays, item)
        n_good, n_bad = self._arrays["n_bytes"][item].tolist()
        return TokenizedPair(name, group, context, good, bad, (n_good, n_bad))


class StoredDocuments(TokenizedDocuments):
    """Documents of a store; see `TokenizedPairs`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], items_D: np.ndarray):
        ends, sizes = arrays["ends"], np.diff(arrays["ends"], prepend=0)
        super().__init__(arrays["tokens"], (ends - sizes)[items_D], sizes[items_D])
        self._arrays, self._items_D = arrays, items_D

    def about(self, i: int) -> tuple[str, str, int]:
        """Id, group and bytes of text of a document."""
        item = int(self._items_D[i])
        return *_names(self._arrays, item), int(self._arrays["n_bytes"][item, 0])


def _cut(arrays: Mapping[str, np.ndarray], flat: str, ends: str, item: int, each: int) -> list[np.ndarray]:
    """The `each` sequences of an item in the array `flat`."""
    first = item * each
    bounds = arrays[ends][max(first - 1, 0) : first + each].tolist()
    return [arrays[flat][a:b] for a, b in itertools.pairwise(bounds if first else [0, *bounds])]


def _names(arrays: Mapping[str, np.ndarray], item: int) -> tuple[str, str]:
    name, group = _cut(arrays, "names", "name_ends", item, 2)
    return name.tobytes().decode(), group.tobytes().decode()


def in_memory(
    records: Sequence[Pair] | Sequence[Document], counts: Counts, tokenizer: Tokenizer, form: PairForm | None
) -> Store:
    """The store of a few records, with the counts of their reading."""
    return Store(_tokenized([(record, None) for record in records], tokenizer, form), counts, form)


def _tokenized(
    found: Sequence[tuple[Any, str | None]], tokenizer: Tokenizer, form: PairForm | None
) -> Arrays:
    records = [record for record, _ in found]
    places_N, named_N = files.places(records, [name for _, name in found])
    reasons = [0] * len(records)
    sequences: list[np.ndarray] = []
    n_bytes: list[tuple[int, ...]] = []
    names: list[bytes] = []
    if form is None:
        sequences = tokenize_documents(records, tokenizer)
        n_bytes = [(len(record.text.encode()),) for record in records]
        names = [name.encode() for record in records for name in (record.id, record.group)]
    else:
        for i, (reason, made) in enumerate(tokenize_each(records, tokenizer, **form._asdict())):
            reasons[i] = REASONS.index(reason) + 1 if reason else 0
            for pair in made:
                sequences += [pair.context, pair.good, pair.bad]
                n_bytes.append(pair.n_bytes)
                names += [pair.id.encode(), pair.group.encode()]
    ids = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    return {
        "digests": np.frombuffer(b"".join(map(digest, records)), np.uint8).reshape(-1, 16),
        "places": places_N,
        "named": named_N,
        "reasons": np.array(reasons, np.uint8),
        "tokens": np.concatenate([np.zeros(0, np.int32), *sequences]).astype(ids),
        "ends": np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64),
        "n_bytes": np.array(n_bytes, np.int64).reshape(-1, 2 if form else 1),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
    }


def is_large(name: str) -> bool:
    """Whether a source is a file or folder whose tokens are kept on disk."""
    return files.is_path(name) and files.size(name) > LARGE


def on_disk(source: files.Source, tokenizer: Tokenizer, form: PairForm | None) -> Store:
    """The store of a file or folder, mapped from the cache; made first where it isn't there.

    Raises UserError as `files.read_pairs` does, and if the cache can't be written.
    """

    def make(folder: Path, partial: Path) -> None:
        counts = Counts()
        paths: list[Path] = []

        def calls() -> Iterator[Call]:
            for part in _parts(files.iterate(source, counts)):
                paths.append(partial / f"{len(paths):06}.npz")
                if not paths[-1].exists():
                    yield _write_part, paths[-1], part, tokenizer.to_json(), form

        print(f"tokenizing {source.path} (once; the tokens are kept in {folder.parent})", file=sys.stderr, flush=True)
        _run_all(calls(), shared=files.size(source.path) > SHARED)
        with new_path(folder, alone=True) as made:
            made.mkdir()
            _join(paths, made, counts)

    folder = cached(source, ["tokens", form, tokenizer.sha], make)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays = {
        name: np.memmap(folder / f"{name}.bin", dtype, "r", shape=tuple(shape)) if shape[0] else np.zeros(shape, dtype)
        for name, (dtype, shape) in meta["arrays"].items()
    }
    return Store(arrays, Counts(meta["read"], meta["kept"], Counter(meta["dropped"])), form)


def trained_tokenizer(
    source: files.Source,
    vocab_size: int,
    choice: Sequence[Any],
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Tokenizer:
    """A tokenizer for a file or folder, from the cache; trained first where it isn't there.

    Args:
      choose: the records to train on, from `files.places`; of their texts the first GiB is used.
      choice: plain JSON that tells this choice from others.
    """

    def make(folder: Path, _: Path) -> None:
        print(f"training a tokenizer on {source.path} (once; kept in {folder.parent})", file=sys.stderr, flush=True)
        parts = [files.places(*zip(*part, strict=True)) for part in _parts(files.iterate(source, Counts()))]
        places_N, named_N = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        used_N = np.zeros(len(places_N), bool)
        used_N[choose(places_N, named_N)] = True
        found = zip(files.iterate(source, Counts()), used_N, strict=True)
        chosen = texts(record for (record, _), used in found if used)
        tokenizer = train_tokenizer(_first(chosen, TRAINED_ON), vocab_size)
        with new_path(folder, alone=True) as made:
            made.mkdir()
            (made / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")

    folder = cached(source, ["tokenizer", vocab_size, list(choice)], make)
    return Tokenizer.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))


def texts(records: Iterable[Pair | Document]) -> Iterator[str]:
    """All texts of records."""
    for record in records:
        if isinstance(record, Document):
            yield record.text
        else:
            yield from (record.context, record.good, record.bad)


def _first(found: Iterable[str], size: int) -> Iterator[str]:
    for text in found:
        if size <= 0:
            return
        size -= len(text)
        yield text


def cached(source: files.Source, settings: Sequence[Any], make: Callable[[Path, Path], None]) -> Path:
    """A folder of the cache that `make(folder, partial)` makes, whole, of a file or folder with these settings.

    `partial` is a folder for its work on the way, which is as it was when a process was killed. Several processes that
    want the same wait for the first one.
    """
    state, _ = input_state([source.path])
    key = hashlib.sha256(json.dumps([_FORMAT, state, source, settings]).encode()).hexdigest()[:32]
    folder = cache_folder() / key
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        with write_errors(folder):
            partial.mkdir(parents=True, exist_ok=True)
            lock = folder.with_suffix(".lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                make(folder, partial)
            remove(partial)
    return folder


def cache_folder() -> Path:
    """Where tokens are kept."""
    named = os.environ.get("HHH_JAX_CACHE_DIR")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hhh_jax" / "tokens")


def _parts(
    found: Iterable[tuple[Any, str | None]],
) -> Iterator[list[tuple[Any, str | None]]]:
    """The records in order, up to about PART characters of text at a time."""
    part: list[tuple[Any, str | None]] = []
    size = 0
    for record, named in found:
        part.append((record, named))
        size += sum(map(len, texts([record])))
        if size > PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _run_all(calls: Iterable[Call], shared: bool) -> None:
    """Makes calls, in the processes of a pool or here."""
    cores = len(os.sched_getaffinity(0))
    if shared and cores > 1:
        with pool(cores) as run_all:
            run_all(calls)
    else:
        for function, *arguments in calls:
            function(*arguments)


def _write_part(
    path: Path, part: Sequence[tuple[Any, str | None]], tokenizer: str, form: PairForm | None
) -> None:
    arrays = _tokenized(part, Tokenizer.from_json(tokenizer), form)
    with new_path(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _join(paths: Sequence[Path], folder: Path, counts: Counts) -> None:
    """Writes the arrays of all parts one behind the other."""
    shapes: dict[str, list[int]] = {}
    dtypes: dict[str, str] = {}
    last = dict.fromkeys(_ENDS, 0)
    with contextlib.ExitStack() as stack:
        out: dict[str, Any] = {}
        for path in paths:
            with np.load(path) as part:
                for name in part.files:
                    array = part[name]
                    if name not in out:
                        out[name] = stack.enter_context((folder / f"{name}.bin").open("wb"))
                        shapes[name], dtypes[name] = [0, *array.shape[1:]], array.dtype.str
                    if name in _ENDS:
                        array = array + last[name]
                        last[name] = int(array[-1]) if len(array) else last[name]
                    array.tofile(out[name])
                    shapes[name][0] += len(array)
    meta = counts.as_dict() | {"arrays": {name: [dtypes[name], shapes[name]] for name in shapes}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
