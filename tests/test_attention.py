"""Which keys a query sees, by hand."""

import numpy as np

from hhh_jax import attention


def test_visibility_by_hand():
    """Two segments; the first has a shared part of two tokens and two branches of two; then padding."""
    segments = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 0]])
    branches = np.array([[0, 0, 1, 1, 2, 2, 0, 0, 0]])
    positions = np.array([[0, 1, 2, 3, 2, 3, 0, 1, 0]])
    expected = [
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        "xx..x....",
        "xx..xx...",
        "......x..",
        "......xx.",
        "........x",
    ]
    layout = attention.Layout(segments, branches, positions)
    mask = np.asarray(attention.visibility(layout, layout).mask)[0]
    assert ["".join("x" if seen else "." for seen in row) for row in mask] == expected
