"""The automaton against looking for the strings in the bytes themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hhh_jax import strings
from hhh_jax.errors import UserError
from hhh_jax.strings import ENDED, FORBIDDEN, STOPPED

# Of a few letters, so that strings overlap, begin each other and stand inside each other.
text = st.text("ab-é", min_size=1, max_size=5)
texts = st.lists(text, max_size=4)


@settings(max_examples=300, deadline=None)
@given(stop=texts, forbidden=texts, vocabulary=st.lists(text, min_size=1, max_size=8), data=st.data())
def test_every_token_of_a_walk_is_judged_as_the_text_is(stop, forbidden, vocabulary, data):
    """Tokens may cut characters in two, hold several strings, or complete one that began tokens ago."""
    spellings = [b"", b"", *(word.encode() for word in vocabulary), b"\xc3", b"\xa9"]
    table_SxV = strings.token_table(spellings, stop, forbidden, 0, [1])
    so_far, state = b"", 0
    for _ in range(12):
        for token, spelling in enumerate(spellings[2:], start=2):
            after, outcome = so_far + spelling, table_SxV[state, token]
            if any(string.encode() in after for string in forbidden):
                assert outcome == FORBIDDEN
            elif any(string.encode() in after for string in stop):
                assert outcome == STOPPED
            else:
                assert 0 <= outcome < len(table_SxV)
        assert (table_SxV[state, 0], table_SxV[state, 1]) == (ENDED, FORBIDDEN)
        allowed = [token for token in range(2, len(spellings)) if table_SxV[state, token] >= 0]
        if not allowed:
            break
        token = data.draw(st.sampled_from(allowed))
        so_far, state = so_far + spellings[token], int(table_SxV[state, token])


def test_no_strings_make_one_state():
    assert strings.token_table([b"", b"", b"a"], [], [], 0, [1]).tolist() == [[ENDED, FORBIDDEN, 0]]
    assert strings.token_table([b"", b"", b"a"], ["abcd"], [], 0, [1]).shape == (8, 3)
    with pytest.raises(UserError, match="empty"):
        strings.token_table([b"", b"", b"a"], [""], [], 0, [1])


def test_a_large_vocabulary_is_a_matter_of_a_second():
    rng = np.random.default_rng(0)
    spellings = [b"", b"", *(rng.bytes(int(n)) for n in rng.integers(1, 30, 2**16 - 2))]
    table_SxV = strings.token_table(spellings, ["Human:", "\n\n-----"], ["-----"], 0, [1])
    assert table_SxV.shape == (32, 2**16) and table_SxV.nbytes == 2**22


def test_cut():
    assert strings.cut(b"one two three", ["three", "two"]) == b"one "
    assert strings.cut(b"one two", ["four"]) == b"one two"
    assert strings.cut("déjà".encode(), ["é"]) == b"d"
