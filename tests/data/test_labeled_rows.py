"""Rows with a label a token: what is written comes back, by hand, and what is missing is said."""

import numpy as np
import pytest

from hhh_jax.data import labeled_rows
from hhh_jax.data.labeled_rows import RowLoader
from hhh_jax.errors import UserError

PAD = 9


def store(folder, form="teacher", rows=5, length=4, k=3):
    """Five rows in two parts; each has a segment of three tokens and one of one."""
    rng = np.random.default_rng(0)
    arrays = {
        "tokens": rng.integers(0, 8, (rows, length)).astype(np.uint16),
        "segment_ids": np.tile(np.array([1, 1, 1, 2], np.uint16), (rows, 1)),
    }
    if form == "teacher":
        arrays["teacher_ids"] = np.tile(np.arange(k, dtype=np.uint16), (rows, length, 1))
        logps = np.log(rng.dirichlet(np.ones(k), (rows, length)))
        arrays["teacher_logps"] = logps.astype(np.float16)
    else:
        arrays["is_human"] = rng.integers(0, 2, (rows, length)).astype(np.uint8)
    for split in ("train", "validation", "test"):
        for number, part in enumerate((slice(0, 3), slice(3, 5))):
            labeled_rows.write_part(folder, split, number, {name: array[part] for name, array in arrays.items()})
    of_splits = dict.fromkeys(("train", "validation", "test"), rows)
    about = {"form": form, "vocab_size": 100, "row_length": length, "rows": of_splits}
    labeled_rows.finish(folder, about, "{}")
    return arrays


def test_rows_come_back_from_any_part(tmp_path):
    arrays = store(tmp_path)
    rows = labeled_rows.open_rows(tmp_path, "train")
    assert len(rows) == 5
    batch = rows.batch([4, 0], PAD, count=3)
    np.testing.assert_array_equal(batch.tokens[:2], arrays["tokens"][[4, 0]])
    np.testing.assert_array_equal(batch.tokens[2], [PAD] * 4)
    np.testing.assert_array_equal(batch.positions[0], [0, 1, 2, 0])
    np.testing.assert_array_equal(batch.loss_mask, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.targets[0, :2], arrays["tokens"][4, 1:3])
    np.testing.assert_array_equal(batch.teacher_ids[1], arrays["teacher_ids"][0])
    np.testing.assert_allclose(np.exp(batch.teacher_logps[:2]), np.exp(arrays["teacher_logps"][[4, 0]]), rtol=2e-3)


def test_a_teacher_never_has_more_than_all_probability(tmp_path):
    store(tmp_path)  # half precision rounds some sums above 1
    logps = labeled_rows.open_rows(tmp_path, "train").batch(range(5), PAD).teacher_logps
    assert (np.exp(logps.astype(np.float64)).sum(-1) <= 1 + 1e-6).all()
    logps_2x2 = np.log(np.array([[0.7, 0.4], [0.5, 0.2]], np.float32))
    expected = [[0.7 / 1.1, 0.4 / 1.1], [0.5, 0.2]]
    np.testing.assert_allclose(np.exp(labeled_rows.normalized(logps_2x2, 3)), expected, rtol=1e-6)


def test_a_whole_vocabulary_has_all_probability():
    logps_RxV = np.log(np.random.default_rng(0).dirichlet(np.ones(300), 50)).astype(np.float16).astype(np.float32)
    exact = logps_RxV.astype(np.float64)
    assert (np.exp(exact).sum(-1) < 1 - 1e-5).any()  # what rounding makes of some
    found = labeled_rows.normalized(logps_RxV, 300).astype(np.float64)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=2e-6)


def test_a_discriminator_labels_every_token(tmp_path):
    arrays = store(tmp_path, "discriminator")
    batch = labeled_rows.open_rows(tmp_path, "test").batch([1], PAD, count=2)
    np.testing.assert_array_equal(batch.is_human[0], arrays["is_human"][1])
    np.testing.assert_array_equal(batch.loss_mask, [[1, 1, 1, 1], [0, 0, 0, 0]])


def test_positions_by_hand():
    segments = np.array([[1, 1, 2, 2, 2, 3, 0, 0], [1, 2, 3, 3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(
        labeled_rows.positions(segments), [[0, 1, 0, 1, 2, 0, 0, 0], [0, 0, 0, 1, 2, 3, 4, 5]]
    )


def test_an_epoch_has_every_row_once(tmp_path):
    arrays = store(tmp_path)
    loader = RowLoader(labeled_rows.open_rows(tmp_path, "train"), 5, PAD)
    first, second = (loader.batch(step, [3, 4]).tokens for step in (0, 1))
    assert first.shape == (2, 5, 4)
    for epoch in (*first, *second):
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, arrays["tokens"]))
    assert not np.array_equal(first[0], second[0])


def test_unfinished_rows_and_missing_parts_are_named(tmp_path):
    with pytest.raises(UserError, match="no finished labeled rows"):
        labeled_rows.open_rows(tmp_path, "train")
    store(tmp_path)
    (tmp_path / "train" / "00001" / "teacher_ids.npy").unlink()
    with pytest.raises(UserError, match="00001: cannot be read"):
        labeled_rows.open_rows(tmp_path, "train")
