"""What a data card counts in one split, in a streaming pass over its records."""

from __future__ import annotations

import hashlib
import numbers
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hhh_jax.data.records import Document, GroupedLabel, MultipleChoice, Pair, Prompt, Record

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENS = 1024  # of a side, context and end-of-context included (paper C.4)
TOKENIZED = 50_000, 2**26  # records and bytes of text in which tokens are counted
PIECE, PIECES = 2**14, 128  # characters of a text that are handled at once, and pieces
EDGES = sorted({round(2 ** (k / 3)) for k in range(94)})  # of the bins of histograms, up to two billion tokens
ITEM, ANSWERED, CONTEXT, OTHER, GROUP = range(5)  # columns of digests


def texts(record: Record) -> list[tuple[str, str]]:
    """(field, text) of each text of a record; a choice's wrong options share a field, labels differ in theirs."""
    match record:
        case Pair():
            return [("context", record.context), ("good", record.good), ("bad", record.bad)]
        case MultipleChoice():
            side = {True: "right option", False: "wrong options"}
            options = [(side[i == record.label], option) for i, option in enumerate(record.options)]
            return [("context", record.context), *options]
        case GroupedLabel():
            return [("labeled 1" if record.label else "labeled 0", record.context)]
        case Document() | Prompt():
            return [("text", record.text)]


def digests(record: Record) -> tuple[int, int, int, int, int]:
    """64-bit digests of the item without its answer and with it, of its context (twice; of a pair without one, of its
    two sides), and of its group; the same for texts that differ in white space and case only."""
    group = _digest("group", record.group)
    match record:
        case Pair():
            context, good, bad = map(_plain, (record.context, record.good, record.bad))
            item, answered = _digest("item", context, *sorted((good, bad))), _digest("answered", context, good, bad)
            if not context:
                return item, answered, _digest("side", good), _digest("side", bad), group
            whole = _digest("context", context)
        case MultipleChoice():
            context, options = _plain(record.context), list(map(_plain, record.options))
            item = _digest("item", context, *sorted(options))
            answered = _digest("answered", context, options[record.label], *sorted(options))
            whole = _digest("context", context) if context else item
        case GroupedLabel():
            item = whole = _digest("context", _plain(record.context))
            answered = _digest("answered", _plain(record.context), str(record.label))
        case Document() | Prompt():
            item = answered = whole = _digest("context", _plain(record.text))
    return item, answered, whole, whole, group


def _plain(text: str) -> str:
    parts: list[str] = []
    after_space = False
    for piece in pieces(text):
        if parts and (after_space or piece[:1].isspace()):
            parts.append(" ")
        parts.append(" ".join(piece.casefold().split()))
        after_space = piece[-1:].isspace()
    return "".join(parts).strip()


def _digest(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest())


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of up to PIECE characters, cut before a space if there is one, so that books take no more
    memory than tweets."""
    start = 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + 1, start + PIECE)
        end = space if space > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def encode(texts: Sequence[str], bpe: tokenizers.Tokenizer) -> list[tuple[int, list[int]]]:
    """The number of tokens of each text, and the first MAX_TOKENS of them. Texts are encoded in pieces, which may
    divide a token where there are several spaces."""
    counts, firsts = [0] * len(texts), [list[int]() for _ in texts]
    parts = [(i, piece) for i, text in enumerate(texts) for piece in pieces(text)]
    for start in range(0, len(parts), PIECES):
        some = parts[start : start + PIECES]
        encodings = bpe.encode_batch([piece for _, piece in some], add_special_tokens=False)
        for (i, _), encoding in zip(some, encodings, strict=True):
            counts[i] += len(encoding)
            if len(firsts[i]) < MAX_TOKENS:
                firsts[i] += encoding.ids[: MAX_TOKENS - len(firsts[i])]
    return list(zip(counts, firsts, strict=True))


class SplitStats:
    """Counts over the records of a split, added in batches.

    Attributes:
      records, text_bytes: of all that were added.
      sample: the first of them, up to `sample_size` (records, bytes of text).
    """

    def __init__(self, sample_size: tuple[int, int], max_digests: int | None = None) -> None:
        """`max_digests`: the records whose digests are kept, at 40 bytes each; None keeps all."""
        self.records = self.text_bytes = self._sample_bytes = 0
        self.sample: list[Record] = []
        self._sample_size, self._max_digests = sample_size, max_digests
        self._digests: list[np.ndarray] = []
        self._kept = 0
        self._tokenized = self._tokenized_bytes = 0
        self._lengths: dict[str, Counter[int]] = {}
        self._truncated = Counter({"truncated": 0})
        self._tables: dict[str, Counter[str]] = {}
        self._meta: dict[str, _Meta] = {}

    def add(self, batch: Sequence[Record], bpe: tokenizers.Tokenizer) -> np.ndarray:
        """Count `batch` and return its digests, uint64 [N, 5]: ITEM, ANSWERED, CONTEXT, OTHER, GROUP."""
        fields = [texts(record) for record in batch]
        sizes = [sum(len(text.encode()) for _, text in record) for record in fields]
        self._count_tokens(batch, fields, sizes, bpe)
        for record, size in zip(batch, sizes, strict=True):
            self.records += 1
            self.text_bytes += size
            if len(self.sample) < self._sample_size[0] and self._sample_bytes < self._sample_size[1]:
                self.sample.append(record)
                self._sample_bytes += size
            self._tabulate(record)
        digests_Nx5 = np.array([digests(record) for record in batch], dtype=np.uint64).reshape(-1, 5)
        if self._max_digests is None or self._kept < self._max_digests:
            self._digests.append(digests_Nx5)
            self._kept += len(batch)
        return digests_Nx5

    def digests(self) -> np.ndarray:
        """Those that were kept, uint64 [N, 5]."""
        return np.concatenate(self._digests) if self._digests else np.zeros((0, 5), np.uint64)

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        digests_Nx5 = self.digests()
        items, answered = (len(np.unique(digests_Nx5[:, column])) for column in (ITEM, ANSWERED))
        _, sizes_G = np.unique(digests_Nx5[:, GROUP], return_counts=True)
        return {
            "records": self.records,
            "text_bytes": self.text_bytes,
            "duplicates": len(digests_Nx5) - items,
            "contradictions": answered - items,
            "groups": len(sizes_G),
            "largest_group": int(sizes_G.max(initial=0)),
            "digested": self._kept,
            "tokenized": self._tokenized,
            "tokens": {field: summary(lengths) for field, lengths in self._lengths.items()},
            "truncation": dict(self._truncated),
            "tables": {name: dict(sorted(table.items())) for name, table in sorted(self._tables.items())},
            "meta": {name: meta.as_dict() for name, meta in sorted(self._meta.items())},
        }

    def _count_tokens(
        self, batch: Sequence[Record], fields: list[list[tuple[str, str]]], sizes: list[int], bpe: tokenizers.Tokenizer
    ) -> None:
        room = TOKENIZED[0] - self._tokenized if self._tokenized_bytes < TOKENIZED[1] else 0
        if room <= 0:
            return
        encoded = iter(encode([text for record in fields[:room] for _, text in record], bpe))
        for record, named, size in zip(batch[:room], fields, sizes, strict=False):
            tokens = [next(encoded) for _ in named]
            for (field, _), (count, _) in zip(named, tokens, strict=True):
                self._lengths.setdefault(field, Counter())[count] += 1
            self._truncate(record, tokens)
            self._tokenized += 1
            self._tokenized_bytes += size

    def _truncate(self, record: Record, tokens: list[tuple[int, list[int]]]) -> None:
        """What a limit of MAX_TOKENS does to a record; see `card_page` for the words."""
        responses = tokens[1:] if isinstance(record, Pair | MultipleChoice) else []
        longest = max((count for count, _ in responses), default=0) + 1
        self._truncated["truncated"] += tokens[0][0] + longest > MAX_TOKENS
        if isinstance(record, Pair):
            self._truncated["response too long"] += longest > MAX_TOKENS
            good, bad = ((tokens[0][1] + first)[:MAX_TOKENS] for _, first in responses)
            self._truncated["equal if cut at the end"] += good == bad

    def _tabulate(self, record: Record) -> None:
        match record:
            case MultipleChoice():
                self._tally("number of options", str(len(record.options)))
                self._tally("position of the right option", str(record.label + 1))
                self._tally("category", record.category)
            case GroupedLabel():
                self._tally("label", str(record.label))
                self._tally("category", record.category)
            case Prompt():
                for name, value in record.meta.items():
                    self._meta.setdefault(name, _Meta()).add(value)

    def _tally(self, table: str, value: str) -> None:
        self._tables.setdefault(table, Counter())[value] += 1


class _Meta:
    """The values of one name in the prompts' meta."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.total, self.lo, self.hi = 0.0, float("inf"), float("-inf")

    def add(self, value: Any) -> None:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        self.types["number" if number else "none" if value is None else type(value).__name__] += 1
        if number:
            self.total += value
            self.lo, self.hi = min(self.lo, value), max(self.hi, value)

    def as_dict(self) -> dict[str, Any]:
        n = self.types["number"]
        return {"types": dict(sorted(self.types.items()))} | (
            {"mean": self.total / n, "min": self.lo, "max": self.hi} if n else {}
        )


def summary(lengths: Counter[int]) -> dict[str, Any]:
    """Mean, quantiles, and how many lengths lie from each of EDGES to below the next; those of 0 are counted apart."""
    values_U = np.array(sorted(lengths))
    counts_U = np.array([lengths[value] for value in values_U])
    n = int(counts_U.sum())
    below_U = np.cumsum(counts_U)
    median, p90 = (int(values_U[np.searchsorted(below_U, share * n)]) for share in (0.5, 0.9))
    bins = Counter[int]()
    for value, count in lengths.items():
        bins[bisect_right(EDGES, value)] += count
    return {
        "texts": n,
        "mean": float(values_U @ counts_U / n),
        "median": median,
        "p90": p90,
        "max": int(values_U[-1]),
        "empty": lengths[0],
        "histogram": {str(EDGES[i - 1]): bins[i] for i in sorted(bins) if i},
    }
