"""Contexts with options to be scored, packed so that the options of a context share it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hhh_jax.attention import MASKED_TOKENS
from hhh_jax.data.packing import Batch, assign_rows, branched_tokens, empty_batch, place_branches


class OptionPlacement(NamedTuple):
    """Where the options of a batch went, by their number among all options of all items; stays on the host.

    Attributes:
      option_RxT: int32, the option whose token is predicted, -1 elsewhere.
      end_RxT: int32, the option whose last token stands here, -1 elsewhere.
    """

    option_RxT: np.ndarray
    end_RxT: np.ndarray


class _Segment(NamedTuple):
    """A context with all or some of its options, of which the first has this number."""

    number: int
    context: np.ndarray
    options: list[np.ndarray]
    shared: bool

    def n_tokens(self, *more: np.ndarray) -> int:
        return branched_tokens(len(self.context), map(len, [*self.options, *more]), self.shared)


def option_batches(
    items: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], length: int, pad_id: int, rows: int
) -> Iterator[tuple[Batch, OptionPlacement]]:
    """All options in order, each once, in batches of exactly `rows` rows of `length` tokens.

    The options of an item are branches behind its context, which rows that are too long for masks repeat for each. An
    item that a row doesn't hold is divided, and its context repeated. Without a context the first token of an option is
    not predicted. Options may not be empty.

    Args:
      items: token ids of a context and of the options after it.

    Raises ValueError for a context and option that are longer than a row.
    """
    segments = list(_segments(items, length))
    sizes = [segment.n_tokens() for segment in segments]
    ends = np.cumsum(sizes)
    first = 0
    while first < len(segments):
        before = ends[first] - sizes[first]
        last = max(int(np.searchsorted(ends, before + rows * length, side="right")), first + 1)
        while len(assigned := assign_rows(sizes[first:last], length, length)) > rows:
            last -= max((last - first) // 32, 1)
        batch, _ = empty_batch(rows, length, 0, pad_id)
        placement = OptionPlacement(*(np.full((rows, length), -1, np.int32) for _ in OptionPlacement._fields))
        for r, members in enumerate(assigned):
            start = 0
            for segment_id, i in enumerate(members, start=1):
                segment = segments[first + i]
                branches = place_branches(
                    batch, r, start, segment_id, segment.context, segment.options, segment.shared
                )
                for option, branch in enumerate(branches, start=segment.number):
                    placement.option_RxT[r, branch.predicting : branch.last] = option
                    placement.end_RxT[r, branch.last] = option
                start = branches[-1].last + 1
        yield batch, placement
        first = last


def _segments(items: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], length: int) -> Iterator[_Segment]:
    number, shared = 0, length <= MASKED_TOKENS
    for context, options in items:
        segment = _Segment(number, context, [], shared)
        for option in options:
            if segment.options and segment.n_tokens(option) > length:
                yield segment
                segment = _Segment(number, context, [], shared)
            segment.options.append(option)
            number += 1
        if segment.options:
            yield segment
