"""Strings in sampled text, found token by token: where sampling stops, and what it never writes.

An automaton (Aho-Corasick) over the bytes of all the strings says after each token how much of which string the text
ends with. As a table of states and tokens it runs on the device, inside the sampling loop.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from hhh_jax.errors import UserError

FORBIDDEN, STOPPED, ENDED = -1, -2, -3


def token_table(
    token_bytes: Sequence[bytes], stop: Sequence[str], forbidden: Sequence[str], end_id: int, never: Sequence[int]
) -> np.ndarray:
    """What a token does to the text sampled so far: int16 ``[S, V]``, of a state (0 at the start) and a token.

    The next state; or `FORBIDDEN`, if the text would then contain a forbidden string, be it behind a stop string;
    `STOPPED`, if it would contain a stop string; `ENDED` for `end_id`. Tokens of `never` are forbidden too.

    The number of states is a power of two, so that few shapes are compiled.

    Raises UserError for an empty string.
    """
    for text in (*stop, *forbidden):
        if not text:
            raise UserError("a stop or forbidden string is empty")
    step_Sx256, has_stop_S, has_forbidden_S = _automaton(
        [text.encode() for text in stop], [text.encode() for text in forbidden]
    )
    n, vocab = len(step_Sx256), len(token_bytes)
    lengths_V = np.array([len(spelling) for spelling in token_bytes])
    by_length_V = np.argsort(-lengths_V, kind="stable")
    bytes_VxL = np.zeros((vocab, max(lengths_V.max(initial=0), 1)), np.uint8)
    for row, token in enumerate(by_length_V):
        bytes_VxL[row, : lengths_V[token]] = np.frombuffer(token_bytes[token], np.uint8)
    state_SxV = np.repeat(np.arange(n, dtype=np.int16)[:, None], vocab, axis=1)
    stopped_SxV, forbidden_SxV = np.zeros((2, n, vocab), bool)
    for i in range(lengths_V.max(initial=0)):
        going = slice(0, int((lengths_V > i).sum()))
        state = step_Sx256[state_SxV[:, going], bytes_VxL[going, i]]
        state_SxV[:, going] = state
        stopped_SxV[:, going] |= has_stop_S[state]
        forbidden_SxV[:, going] |= has_forbidden_S[state]
    table_SxV = np.zeros((1 << (n - 1).bit_length(), vocab), np.int16)
    table_SxV[:n, by_length_V] = np.where(forbidden_SxV, FORBIDDEN, np.where(stopped_SxV, STOPPED, state_SxV))
    table_SxV[:, list(never)] = FORBIDDEN
    table_SxV[:, end_id] = ENDED
    return table_SxV


def _automaton(stop: Sequence[bytes], forbidden: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next state after each byte, int16 ``[S, 256]``, and whether a state ends in a string of each kind ``[S]``."""
    children: list[dict[int, int]] = [{}]
    ends: list[set[str]] = [set()]
    for kind, strings in (("stop", stop), ("forbidden", forbidden)):
        for string in strings:
            state = 0
            for byte in string:
                if byte not in children[state]:
                    children[state][byte] = len(children)
                    children.append({})
                    ends.append(set())
                state = children[state][byte]
            ends[state].add(kind)
    if len(children) > np.iinfo(np.int16).max:
        raise UserError(f"the stop and forbidden strings have {len(children) - 1} bytes together; at most 32766")
    step_Sx256 = np.zeros((len(children), 256), np.int16)
    fallback = [0] * len(children)  # the state of the longest proper suffix that begins a string
    queue = deque([0])
    while queue:
        state = queue.popleft()
        ends[state] |= ends[fallback[state]]
        step_Sx256[state] = step_Sx256[fallback[state]] if state else 0
        for byte, child in children[state].items():
            fallback[child] = int(step_Sx256[state, byte]) if state else 0
            step_Sx256[state, byte] = child
            queue.append(child)
    has_stop_S, has_forbidden_S = (np.array([kind in found for found in ends]) for kind in ("stop", "forbidden"))
    return step_Sx256, has_stop_S, has_forbidden_S


def cut(text: bytes, stop: Sequence[str]) -> bytes:
    """What comes before the first stop string."""
    found = [text.find(string.encode()) for string in stop]
    return text[: min((at for at in found if at >= 0), default=len(text))]
