"""Documents and pairs to packed rows, where every segment is computed as if it stood alone.

A pair is one segment with two branches that share their context. The shared part (branch 0) is the context less its
last token; each branch begins with that token, because one context end has two next tokens:

    tokens        c0 c1 c2 g0 g1 EOC c2 b0 EOC     context c0 c1 c2, good side g0 g1, bad side b0
    branch_ids     0  0  1  1  1   1  2  2   2
    positions      0  1  2  3  4   5  2  3   4     a query sees a key iff same segment, position <=, and the
    targets       c1 c2 g0 g1 EOC  .  b0 EOC .     key's branch is 0 or its own
    loss_mask      x  x  x  x  x                   the whole good sequence
    response_mask        x  x  x      x  x         the responses of both sides, end-of-context included
    score_positions             ^            ^     where the two rewards are read
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hhh_jax.data.records import Counts, Document, Pair
from hhh_jax.data.tokenizer import Tokenizer

REASONS = (
    "response longer than max_tokens", "sides equal after tokenization", "both sides together longer than a row",
    "response without a token to predict",
)  # fmt: skip
"""Why a pair can't be used."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    """Packed rows; every array begins with the row axis, so rows are what is sharded and accumulated.

    Attributes:
      tokens, targets: int32 ``[R, T]``; ``targets`` counts only under a mask.
      segment_ids: int32 ``[R, T]``, 1, 2, ... within a row; 0 is padding.
      branch_ids: int32 ``[R, T]``; 0 is shared by all branches of the segment.
      positions: int32 ``[R, T]``, from 0 in each segment.
      loss_mask: bool ``[R, T]``, the tokens whose target the language-modeling loss counts: whole documents, or the
        whole good sequence of pairs.
      response_mask: bool ``[R, T]``, the tokens whose target belongs to a response, good or bad.
      score_positions: int32 ``[R, S, 2]``, the place in the row of the good and the bad side's last token, which is
        end-of-context.
      pair_mask: bool ``[R, S]``, which slots hold a pair.
      teacher_ids, teacher_logps: int32 and float32 ``[R, T, k]``, the stored teacher of distillation.
      is_human: float32 ``[R, T]``, the labels of the per-token discriminator.
      reference_logps: float32 ``[R, S, 2]``, what `Outputs.pair_logps` gives under the reference of DPO; the step fills
        them in.
    """

    tokens: Any
    targets: Any
    segment_ids: Any
    branch_ids: Any
    positions: Any
    loss_mask: Any
    response_mask: Any
    score_positions: Any
    pair_mask: Any
    teacher_ids: Any = None
    teacher_logps: Any = None
    is_human: Any = None
    reference_logps: Any = None


@dataclasses.dataclass
class Placement:
    """Where the records of a batch went; stays on the host.

    Attributes:
      option_RxT: int32, ``2 * pair + side`` (side 0 is good) where a response token is predicted, -1 elsewhere. For
        documents, the index of the document whose token is predicted.
      pair_RxS: int32, the index of the pair in each slot, -1 where none is.
    """

    option_RxT: np.ndarray
    pair_RxS: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids, int32 one-dimensional each; `good` and `bad` end with end-of-context if the form of pairs has one (see
    `tokenize_pairs`), `context` may be empty."""

    id: str
    group: str
    context: np.ndarray
    good: np.ndarray
    bad: np.ndarray
    n_bytes: tuple[int, int]

    def n_tokens(self, share_context: bool = True) -> int:
        """Tokens that the pair takes in a row."""
        return branched_tokens(len(self.context), (len(self.good), len(self.bad)), share_context)


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    max_tokens: int,
    row_length: int,
    counts: Counts,
    *,
    binarize: bool = False,
    share_context: bool = True,
    end_of_context: bool = True,
) -> list[TokenizedPair]:
    """Tokenizes context and response apart and truncates each side to `max_tokens`, end-of-context included.

    Truncation takes the context from the left; response and end-of-context stay. A pair that still doesn't fit, or
    whose sides are equal, is moved in `counts` from kept to dropped, with the reason.

    Args:
      row_length: tokens of a row, which has to hold both sides of a pair.
      binarize: build from each ``A > B`` the two pairs ``GOOD:A > BAD:A`` and ``BAD:B > GOOD:B`` (section 4.1), with
        the context inside the sides, so that the two sides differ at their first token.
      end_of_context: whether each side ends with that token; if not, its score is read at its last one (figure 31).
    """
    result = []
    form = {"binarize": binarize, "share_context": share_context, "end_of_context": end_of_context}
    for reason, made in tokenize_each(pairs, tokenizer, max_tokens, row_length, **form):
        if reason:
            counts.kept -= 1
            counts.dropped[reason] += 1
        result += made
    return result


def tokenize_each(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    max_tokens: int,
    row_length: int,
    *,
    binarize: bool = False,
    share_context: bool = True,
    end_of_context: bool = True,
) -> Iterator[tuple[str, list[TokenizedPair]]]:
    """What `tokenize_pairs` makes of each pair, or one of REASONS why it can't be used."""
    texts = [text for pair in pairs for text in (pair.context, pair.good, pair.bad)]
    ids = tokenizer.encode_batch(texts)
    eoc = np.array([tokenizer.eoc_id] if end_of_context else [], np.int32)
    labels = [tokenizer.encode("GOOD:"), tokenizer.encode("BAD:")] if binarize else []
    room = max_tokens - max((len(label) for label in labels), default=0)
    for i, pair in enumerate(pairs):
        context, good, bad = ids[3 * i], np.append(ids[3 * i + 1], eoc), np.append(ids[3 * i + 2], eoc)
        shortest, longest = sorted((len(good), len(bad)))
        # Both sides keep the same context, also where it would fit with the shorter one only.
        context = context[max(0, len(context) - (room - longest)) :]
        n_bytes = (len(pair.good.encode()), len(pair.bad.encode()))
        whole = TokenizedPair(pair.id, pair.group, context, good, bad, n_bytes)
        too_long, equal, together_too_long, nothing = REASONS
        if longest > room:
            yield too_long, []
        elif np.array_equal(good, bad):
            yield equal, []
        elif shortest + bool(len(context) or binarize) < 2:
            yield nothing, []
        elif not binarize and whole.n_tokens(share_context) > row_length:
            yield together_too_long, []
        elif not binarize:
            yield "", [whole]
        else:
            made, none = [], context[:0]
            for side, size, label in ((good, n_bytes[0], 0), (bad, n_bytes[1], 1)):
                right, wrong = (np.concatenate([labels[k], context, side]) for k in (label, 1 - label))
                name = f"{pair.id}/{'good' if label == 0 else 'bad'}"
                made.append(TokenizedPair(name, pair.group, none, right, wrong, (size, size)))
            yield "", made


def row_sizes(n_pairs: int, multiple: int = 1, count: int = 4) -> list[int]:
    """The few static numbers of rows that a batch of `n_pairs` may take: `count` equal parts of `n_pairs`, each a
    multiple of `multiple` (data x fsdp). The last one holds any batch whose pairs each fit a row."""
    sizes = {-(-n_pairs * part // count // multiple) * multiple for part in range(1, count + 1)}
    return sorted(sizes | {-(-n_pairs // multiple) * multiple})


def assign_rows(sizes: Sequence[int], length: int, slots: int) -> list[list[int]]:
    """First-fit decreasing: lists of indices, one a row, with at most `length` tokens and `slots` items each."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if sizes[i] > length:
            raise ValueError(f"item {i} has {sizes[i]} tokens and a row {length}")
        for r, room in enumerate(free):
            if sizes[i] <= room and len(rows[r]) < slots:
                break
        else:
            r = len(rows)
            rows.append([])
            free.append(length)
        rows[r].append(i)
        free[r] -= sizes[i]
    return rows


def empty_batch(rows: int, length: int, slots: int, pad_id: int) -> tuple[Batch, Placement]:
    """A batch of padding, to be filled; numpy arrays."""
    zeros = lambda: np.zeros((rows, length), np.int32)  # noqa: E731
    batch = Batch(
        tokens=np.full((rows, length), pad_id, np.int32),
        targets=zeros(),
        segment_ids=zeros(),
        branch_ids=zeros(),
        positions=zeros(),
        loss_mask=np.zeros((rows, length), bool),
        response_mask=np.zeros((rows, length), bool),
        score_positions=np.zeros((rows, slots, 2), np.int32),
        pair_mask=np.zeros((rows, slots), bool),
    )
    return batch, Placement(np.full((rows, length), -1, np.int32), np.full((rows, slots), -1, np.int32))


def pack_pairs(
    pairs: Sequence[TokenizedPair],
    length: int,
    slots: int,
    pad_id: int,
    *,
    sizes: Sequence[int],
    share_context: bool = True,
) -> tuple[Batch, Placement]:
    """Packs all of `pairs`, and nothing else, into the smallest number of rows of `sizes` that holds them.

    Args:
      pairs: at most ``length`` tokens each (`TokenizedPair.n_tokens`); a longer one is a ValueError.
      length: tokens of a row.
      slots: pairs that a row can hold.
      sizes: the static numbers of rows, ascending; spare rows are padding and weigh zero.
      share_context: whether the two sides of a pair share their context; if not, it is repeated.
    """
    assigned = assign_rows([pair.n_tokens(share_context) for pair in pairs], length, slots)
    rows = next((size for size in sizes if size >= len(assigned)), None)
    if rows is None:
        need = f"{len(pairs)} pairs need {len(assigned)} rows of {length} tokens"
        raise ValueError(f"{need}; the sizes are {list(sizes)}")
    batch, placement = empty_batch(rows, length, slots, pad_id)
    for r, members in enumerate(assigned):
        start = 0
        for s, p in enumerate(members):
            pair = pairs[p]
            batch.pair_mask[r, s] = True
            placement.pair_RxS[r, s] = p
            branches = place_branches(batch, r, start, s + 1, pair.context, (pair.good, pair.bad), share_context)
            batch.loss_mask[r, start : branches[0].first] = True  # what the sides share
            for side, (first, predicting, last) in enumerate(branches):
                batch.loss_mask[r, first:last] = side == 0
                batch.response_mask[r, predicting:last] = True
                batch.score_positions[r, s, side] = last
                placement.option_RxT[r, predicting:last] = 2 * p + side
            start = branches[-1].last + 1
    return batch, placement


class Branch(NamedTuple):
    """Where one response stands in its row: the branch's first token, the one that predicts the first token of the
    response, and the last one."""

    first: int
    predicting: int
    last: int


def place_branches(
    batch: Batch,
    row: int,
    start: int,
    segment: int,
    context: np.ndarray,
    responses: Sequence[np.ndarray],
    share_context: bool = True,
) -> list[Branch]:
    """Writes a segment into a row of `batch` from `start` on: a context and one branch for each of its responses.

    Masks and scores are the caller's to set. A segment takes `branched_tokens` places.
    """
    n_shared = max(len(context) - 1, 0) if share_context else 0
    span = slice(start, start + n_shared)
    batch.tokens[row, span] = context[:n_shared]
    batch.targets[row, span] = context[1 : n_shared + 1]
    batch.positions[row, span] = np.arange(n_shared)
    batch.segment_ids[row, span] = segment
    start += n_shared
    own = context[n_shared:]
    branches = []
    for branch, response in enumerate(responses, start=1):
        tokens = np.concatenate([own, response])
        n = len(tokens)
        span = slice(start, start + n)
        batch.tokens[row, span] = tokens
        batch.targets[row, start : start + n - 1] = tokens[1:]
        batch.positions[row, span] = n_shared + np.arange(n)
        batch.segment_ids[row, span] = segment
        batch.branch_ids[row, span] = branch
        branches.append(Branch(start, start + max(len(own) - 1, 0), start + n - 1))
        start += n
    return branches


def branched_tokens(context: int, responses: Iterable[int], share_context: bool = True) -> int:
    """Places that a context and its responses take in a row, from their numbers of tokens."""
    shared = max(context - 1, 0) if share_context else 0
    return shared + sum(context - shared + response for response in responses)


class TokenizedDocuments(Sequence[np.ndarray]):
    """Token ids of documents, the delimiter included, that lie in one array.

    Args:
      tokens: ids one after the other, of any integer type; may be mapped from a file.
      starts_D, sizes_D: int64, where each document begins in it and how many tokens it has.
    """

    def __init__(self, tokens: np.ndarray, starts_D: np.ndarray, sizes_D: np.ndarray):
        self.tokens, self.starts_D, self.sizes_D = tokens, starts_D, sizes_D

    @classmethod
    def join(cls, documents: Iterable[np.ndarray]) -> "TokenizedDocuments":
        """Of separate arrays; copies them."""
        parts = list(documents)
        sizes_D = np.array([len(part) for part in parts])
        return cls(np.concatenate(parts), np.cumsum(sizes_D) - sizes_D, sizes_D)

    def __len__(self) -> int:
        return len(self.sizes_D)

    def __getitem__(self, i: Any) -> Any:
        """The ids of a document, int32; a list of a slice."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        start = self.starts_D[i]
        return self.tokens[start : start + self.sizes_D[i]].astype(np.int32)


class DocumentStream:
    """Documents as one endless stream of tokens, each followed by the delimiter; any row of it is found at once.

    An epoch is a permutation of the documents laid end to end, cut into rows of `length` tokens, and a permutation of
    these rows, so that neither a batch nor a stretch of training is of one long document; both depend on (seed, epoch)
    only. A document that a cut divides goes on as a segment of its own; every token but the first of a document is
    predicted exactly once an epoch, except in the last, incomplete row, which is left out.

    Args:
      documents: token ids of each document, the delimiter included.
      length: tokens of a row.
      seed: of the permutations; None keeps the given order and keeps the last row, for evaluation.
    """

    def __init__(self, documents: Sequence[np.ndarray], length: int, seed: int | None):
        joined = documents if isinstance(documents, TokenizedDocuments) else TokenizedDocuments.join(documents)
        self.tokens, self.starts_D, self.sizes_D = joined.tokens, joined.starts_D, joined.sizes_D
        self.length, self.seed, self.total = length, seed, int(self.sizes_D.sum())
        # The incomplete last row is left out of an epoch, unless there is no other.
        self.rows_per_epoch = -(-self.total // length) if seed is None else max(self.total // length, 1)
        self._epoch: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Permutation of the documents ``[D]``; in that order, where each begins in the epoch's tokens ``[D]``; and
        permutation of the rows ``[rows_per_epoch]``."""
        if self._epoch is None or self._epoch[0] != epoch:
            order_D, row_N = np.arange(len(self.sizes_D)), np.arange(self.rows_per_epoch)
            if self.seed is not None:
                rng = np.random.default_rng((self.seed, epoch))
                order_D, row_N = rng.permutation(order_D), rng.permutation(row_N)
            sizes_D = self.sizes_D[order_D]
            self._epoch = epoch, order_D, np.cumsum(sizes_D) - sizes_D, row_N
        return self._epoch[1:]

    def batch(self, first_row: int, rows: int, pad_id: int) -> tuple[Batch, Placement]:
        """Rows ``first_row`` to ``first_row + rows`` of the endless stream; past the end if `seed` is None, padding."""
        batch, placement = empty_batch(rows, self.length, 0, pad_id)
        for r in range(rows):
            epoch, row = divmod(first_row + r, self.rows_per_epoch)
            if self.seed is None and epoch > 0:
                break
            order_D, begins_D, row_N = self._order(epoch)
            start = int(row_N[row]) * self.length
            end = min(start + self.length, self.total)
            d = int(np.searchsorted(begins_D, start, side="right")) - 1
            at, segment = start, 0
            while at < end:
                document, begin = order_D[d], begins_D[d]
                size = self.sizes_D[document]
                stop = min(begin + size, end)
                span = slice(at - start, stop - start)
                source = self.starts_D[document] + at - begin
                n = stop - at
                ends_here = stop == begin + size
                predicted = n - 1 if ends_here else n
                segment += 1
                batch.tokens[r, span] = self.tokens[source : source + n]
                batch.targets[r, at - start : at - start + predicted] = self.tokens[source + 1 : source + 1 + predicted]
                batch.loss_mask[r, at - start : at - start + predicted] = True
                batch.segment_ids[r, span] = segment
                batch.positions[r, span] = np.arange(n)
                placement.option_RxT[r, at - start : at - start + predicted] = document
                at, d = stop, d + 1
        return batch, placement


def tokenize_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of each document, int32, with the delimiter at its end (a later stage's end-of-context token)."""
    eoc = np.array([tokenizer.eoc_id], np.int32)
    return [np.append(ids, eoc) for ids in tokenizer.encode_batch([document.text for document in documents])]
