"""Texts that nearly repeat earlier ones, by MinHash: signatures of the sets of their 5-word sequences.

Signatures (512 bytes a text) lie in a temporary file; memory is 24 bytes a text, and some 300 MB for sorting. Texts
that agree in a band of the signature are compared by the whole of it. The outcome depends on texts and threshold only.
rensa computes them: tens of times faster than the other well-kept library, datasketch, given hashes of the sequences.
"""

from __future__ import annotations

import array
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from hhh_jax.errors import UserError

SIZE = 128  # numbers of a signature; their share that agrees estimates similarity within 0.04 (one sigma)
WORDS = 5
_SEED = 1
_BATCH = 2**19  # bytes of text hashed at a time
_SLICE = 8_000_000  # keys sorted at a time
_ROWS = 2**16  # signatures read at a time
_RECALL = 0.99
_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
_LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)
_WEIGHTS = np.random.default_rng(0).integers(0, 2**64, 256 + WORDS, dtype=np.uint64) | np.uint64(1)


class Finder:
    """Takes texts in order (`add`), then says which of them nearly repeat an earlier one (`earlier`)."""

    def __init__(self, threshold: float) -> None:
        """`threshold` is the Jaccard similarity from which on a text is a repetition. Raises UserError if it isn't
        above 0 and at most 1, or without the library."""
        if not 0 < threshold <= 1:
            raise UserError(f"dedup={threshold}: must be a similarity above 0 and at most 1, as 0.8; 0 switches it off")
        try:
            from rensa import RMinHash
        except ModuleNotFoundError:
            raise UserError("dedup needs a MinHash library: pip install rensa, or the extra data") from None
        self._threshold, self._minhash, self._n = threshold, RMinHash, 0
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Finder:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def add(self, texts: Iterable[str]) -> None:
        """Adds the signatures of some texts, UTF-8 within."""
        batch: list[bytes] = []
        size = 0
        for text in map(str.encode, texts):
            if size + len(text) > _BATCH and batch:
                self._sign(*shingles(batch))
                batch, size = [], 0
            if len(text) > _BATCH:  # hashed in pieces
                pieces = [shingles([text[start : start + _BATCH]])[0] for start in range(0, len(text), _BATCH)]
                self._sign(np.concatenate(pieces), np.array([sum(map(len, pieces))]))
            else:
                batch.append(text)
                size += len(text)
        if batch:
            self._sign(*shingles(batch))

    def _sign(self, hashes_S: np.ndarray, ends_T: np.ndarray) -> None:
        offsets = np.concatenate([[0], ends_T]).astype(np.uint64)
        matrix = self._minhash.digest_matrix_from_flat_token_hashes(hashes_S, offsets, SIZE, _SEED)
        self._file.write(np.array(matrix.to_rows(), np.uint32).tobytes())
        self._n += len(ends_T)

    def earlier(self) -> np.ndarray:
        """For each text the number of the first one that it was found to repeat, -1 if none; int64 ``[N]``."""
        earlier_N = np.full(self._n, -1, np.int64)
        if self._n:
            self._file.flush()
            signatures_NxS = np.memmap(self._file, np.uint32, "r", shape=(self._n, SIZE))
            rows = band_rows(self._threshold)
            for start in range(0, SIZE - rows + 1, rows):
                for first_C, second_C in _candidates(signatures_NxS, start, start + rows):
                    self._compare(signatures_NxS, first_C, second_C, earlier_N)
        return earlier_N

    def _compare(
        self, signatures_NxS: np.ndarray, first_C: np.ndarray, second_C: np.ndarray, earlier_N: np.ndarray
    ) -> None:
        for start in range(0, len(first_C), _ROWS):
            first_R, second_R = first_C[start : start + _ROWS], second_C[start : start + _ROWS]
            alike_R = (signatures_NxS[first_R] == signatures_NxS[second_R]).mean(1) >= self._threshold
            first_R, second_R = first_R[alike_R], second_R[alike_R]
            known_R = earlier_N[second_R]
            earlier_N[second_R] = np.where((known_R < 0) | (first_R < known_R), first_R, known_R)


def band_rows(threshold: float) -> int:
    """The most numbers a band can have while texts at the threshold agree in one with a probability of 0.99."""
    return max(
        (rows for rows in range(1, 17) if 1 - (1 - threshold**rows) ** (SIZE // rows) >= _RECALL),
        default=1,
    )


def _candidates(signatures_NxS: np.ndarray, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(first, other) of the texts that agree in a band: each with the first that has its band."""
    n = len(signatures_NxS)
    slices = 1 + n // _SLICE
    for part in range(slices):
        numbers, keys = [], []
        for begin in range(0, n, _ROWS):
            band_RxB = np.ascontiguousarray(signatures_NxS[begin : begin + _ROWS, start:stop]).astype(np.uint64)
            key_R = _mixed((band_RxB * _WEIGHTS[: stop - start]).sum(1, dtype=np.uint64))
            mine_R = np.flatnonzero(key_R % np.uint64(slices) == part)
            numbers.append(mine_R + begin)
            keys.append(key_R[mine_R])
        number_K, key_K = np.concatenate(numbers), np.concatenate(keys)
        order_K = np.argsort(key_K, kind="stable")
        number_K, key_K = number_K[order_K], key_K[order_K]
        same_K = np.concatenate([[False], key_K[1:] == key_K[:-1]])
        first_K = np.maximum.accumulate(np.where(same_K, 0, np.arange(len(key_K))))
        yield number_K[first_K[same_K]], number_K[same_K]


def shingles(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the sequences of 5 words (letters and digits, small) of each text, or of all its words if it has fewer;
    at least one a text.

    Returns:
      All texts' hashes, uint64 ``[S]``, and where each text's end in them, int64 ``[T]``.
    """
    letters_B = _LOWER[np.frombuffer(b"\n".join(texts) + b"\n", np.uint8)]
    in_word_B = _WORD[letters_B]
    edges = np.flatnonzero(in_word_B[1:] != in_word_B[:-1]) + 1
    if in_word_B[0]:
        edges = np.concatenate([[0], edges])
    begins_W, lengths_W = edges[::2], edges[1::2] - edges[::2]
    words_W = _hashes(letters_B[in_word_B].astype(np.uint64), lengths_W)

    text_ends_T = np.cumsum([len(text) + 1 for text in texts])
    words_T = np.bincount(np.searchsorted(text_ends_T, begins_W, "right"), minlength=len(texts))
    sizes_T = np.minimum(words_T, WORDS)
    counts_T = words_T - sizes_T + 1
    ends_T = np.cumsum(counts_T)
    # The words of a text begin `words_T` before their sum, its sequences `counts_T` before theirs.
    first_S = np.arange(ends_T[-1]) + np.repeat(np.cumsum(words_T) - words_T - (ends_T - counts_T), counts_T)
    sizes_S = np.repeat(sizes_T, counts_T)
    sums_S = np.zeros(len(first_S), np.uint64)
    for place in range(WORDS):
        has_S = sizes_S > place
        sums_S[has_S] += words_W[first_S[has_S] + place] * _WEIGHTS[256 + place]
    return _mixed(sums_S), ends_T


def _hashes(letters_L: np.ndarray, lengths_W: np.ndarray) -> np.ndarray:
    """Hashes of words whose letters stand one after the other."""
    if not len(lengths_W):
        return np.zeros(0, np.uint64)
    firsts_W = np.cumsum(lengths_W) - lengths_W
    letters_L *= _WEIGHTS[(np.arange(len(letters_L)) - np.repeat(firsts_W, lengths_W)) & 255]
    return _mixed(np.add.reduceat(letters_L, firsts_W))


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3: every bit depends on all."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))


class Lines:
    """Texts in a temporary file, by number."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._ends = array.array("Q", [0])

    def add(self, line: str) -> None:
        self._ends.append(self._ends[-1] + self._file.write(line.encode(errors="replace")))

    def __getitem__(self, number: int) -> str:
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number]).decode()

    def close(self) -> None:
        self._file.close()
