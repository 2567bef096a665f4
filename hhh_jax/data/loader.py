"""What a run reads at step ``i``: batches as functions of (seed, step), and every held-out item once."""

import dataclasses
import functools
import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hhh_jax.data.packing import Batch, DocumentStream, Placement, TokenizedPair, pack_pairs, row_sizes


def stack(batches: Sequence[Batch]) -> Batch:
    """Batches of equal shape, one a seed, to one batch ``[G, R, ...]``."""
    return jax.tree.map(lambda *xs: np.stack(xs), *batches)


def pair_order(n_pairs: int, seed: int, first: int, count: int) -> np.ndarray:
    """Which pairs come as number ``first`` to ``first + count`` of the endless stream: a new permutation each epoch."""
    indices = np.arange(first, first + count)
    epochs = indices // n_pairs
    permutations = {e: _permutation(n_pairs, seed, int(e)) for e in np.unique(epochs)}
    return np.array([permutations[e][i % n_pairs] for e, i in zip(epochs, indices, strict=True)], np.int64)


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(n)
    return order.astype(np.uint32) if n <= 2**32 else order


class FlippedPairs(Sequence[TokenizedPair]):
    """Pairs of which a share has its sides exchanged: label noise, or at one half shuffled labels.

    Args:
      pairs: all of them.
      share: of the records to flip, rounded to a whole number; those of a smaller share are among those of a larger.
      seed: what draws them.
      each: pairs that come of one record, one after the other; they are flipped together.
    """

    def __init__(self, pairs: Sequence[TokenizedPair], share: float, seed: int, each: int = 1):
        records = list(range(len(pairs) // each))
        random.Random(f"flip {seed}").shuffle(records)
        self.flipped = frozenset(records[: round(share * len(records))])
        self._pairs, self._each = pairs, each

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: Any) -> Any:
        """A `TokenizedPair`; a list of a slice."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        pair = self._pairs[i]
        if int(i) // self._each not in self.flipped:
            return pair
        return dataclasses.replace(pair, good=pair.bad, bad=pair.good, n_bytes=pair.n_bytes[::-1])


class PairLoader:
    """Training batches of exactly `batch_pairs` pairs.

    Args:
      pairs: the training pairs; the paper's x axes count them with repeats.
      batch_pairs: pairs of a step.
      length, slots, pad_id, share_context: as in `pack_pairs`.
      multiple: what the number of rows must be a multiple of.
      n_sizes: numbers of rows that a batch may take; each is a program to compile.
    """

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        batch_pairs: int,
        length: int,
        slots: int,
        pad_id: int,
        multiple: int,
        share_context: bool = True,
        n_sizes: int = 4,
    ):
        self.pairs, self.batch_pairs = pairs, batch_pairs
        self.length, self.slots, self.pad_id, self.share_context = length, slots, pad_id, share_context
        self.sizes = row_sizes(batch_pairs, multiple, n_sizes)

    def batch(self, step: int, seeds: Sequence[int]) -> Batch:
        """The batch of update `step` (from 0) for every seed, ``[G, R, T]``."""
        chosen = [
            [self.pairs[i] for i in pair_order(len(self.pairs), seed, step * self.batch_pairs, self.batch_pairs)]
            for seed in seeds
        ]
        batches = [self._pack(pairs, self.sizes) for pairs in chosen]
        rows = max(len(batch.tokens) for batch in batches)
        return stack(
            [b if len(b.tokens) == rows else self._pack(p, [rows]) for b, p in zip(batches, chosen, strict=True)]
        )

    def _pack(self, pairs: Sequence[TokenizedPair], sizes: Sequence[int]) -> Batch:
        batch, _ = pack_pairs(
            pairs, self.length, self.slots, self.pad_id, sizes=sizes, share_context=self.share_context
        )
        return batch


class DocumentLoader:
    """Training batches of `rows` rows of documents.

    Args:
      documents: token ids of each document, the delimiter included.
      rows: rows of a step.
      length, pad_id: as in `DocumentStream`.
    """

    def __init__(self, documents: Sequence[np.ndarray], rows: int, length: int, pad_id: int):
        self.documents, self.rows, self.length, self.pad_id = documents, rows, length, pad_id
        self._streams: dict[int, DocumentStream] = {}

    def batch(self, step: int, seeds: Sequence[int], rows_N: np.ndarray | None = None) -> Batch:
        """The batch of update `step` (from 0) for every seed, ``[G, R, T]``; or these rows of it alone, ascending."""
        for seed in seeds:
            if seed not in self._streams:
                self._streams[seed] = DocumentStream(self.documents, self.length, seed)
        rows_N = np.arange(self.rows) if rows_N is None else rows_N
        runs = np.split(rows_N, np.flatnonzero(np.diff(rows_N) > 1) + 1)

        def one(stream: DocumentStream) -> Batch:
            parts = [stream.batch(step * self.rows + int(run[0]), len(run), self.pad_id)[0] for run in runs]
            return parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

        return stack([one(self._streams[seed]) for seed in seeds])


def batch_rows(
    loader: Any, step: int, seeds: Sequence[int], rows_of: Callable[[int], np.ndarray]
) -> tuple[Batch, int, int]:
    """One process's part of the batch of update `step`.

    Args:
      loader: any that has ``batch(step, seeds)``.
      rows_of: of a batch of so many rows, which ones to return, ascending.

    Returns:
      These rows ``[G, N, T]``; the number of rows ``R`` of the whole batch; how many tokens it has, without padding.
      Of documents no other rows are made; what is packed is packed as a whole.
    """
    if isinstance(loader, DocumentLoader):
        rows_N = rows_of(loader.rows)
        batch = loader.batch(step, seeds, rows_N)
        tokens = int((batch.segment_ids > 0).sum()) * loader.rows // len(rows_N)  # each row has as many
        return batch, loader.rows, tokens
    batch = loader.batch(step, seeds)
    n_rows = batch.tokens.shape[1]
    rows_N = rows_of(n_rows)
    tokens = int((batch.segment_ids > 0).sum())
    return batch if len(rows_N) == n_rows else jax.tree.map(lambda x: x[:, rows_N], batch), n_rows, tokens


def document_batches(
    documents: Sequence[np.ndarray], length: int, pad_id: int, rows: int
) -> Iterator[tuple[Batch, Placement]]:
    """All documents in order, each token once, in batches of `rows` rows."""
    stream = DocumentStream(documents, length, None)
    for first in range(0, stream.rows_per_epoch, rows):
        yield stream.batch(first, rows, pad_id)


def prefetch(make: Callable[[int], Any], start: int, stop: int, depth: int = 2) -> Iterator[Any]:
    """``make(start), ..., make(stop - 1)``, made by a thread up to `depth` ahead; its errors are raised here."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    abandoned = threading.Event()

    def offer(item: tuple[Any, BaseException | None]) -> None:
        while not abandoned.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        for i in range(start, stop):
            if abandoned.is_set():
                return
            try:
                offer((make(i), None))
            except BaseException as error:
                return offer((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(start, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        abandoned.set()
