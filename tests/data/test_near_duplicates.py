import random

import numpy as np
import pytest

from hhh_jax.data.near_duplicates import SIZE, Finder, Lines, band_rows, shingles
from hhh_jax.errors import UserError

pytest.importorskip("rensa", reason="needs the data extra")
WORDS = [f"word{i}" for i in range(2000)]


def five_words(text):
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def similarity(a, b):
    a, b = five_words(a), five_words(b)
    return len(a & b) / len(a | b)


def sample(rng, size):
    return [rng.choice(WORDS) for _ in range(size)]


def test_shingles_are_the_sets_of_five_words():
    texts = ["One, two THREE four_five", "one two  three\nfour five", "one two three four", "one two three four five 6",
             "naïve 日本 x y z", "naïve 日本 x y q", "...", "", "a" * 300, "a" * 300 + "b"]  # fmt: skip
    hashes, ends = shingles([text.encode() for text in texts])
    sets = [set(part.tolist()) for part in np.split(hashes, ends[:-1])]
    assert [sorted(shingles([text.encode()])[0].tolist()) for text in texts] == [sorted(part) for part in sets]
    for a, text_a in zip(sets, texts, strict=True):
        assert len(a) == len(five_words(text_a))
        for b, text_b in zip(sets, texts, strict=True):
            assert len(a & b) == len(five_words(text_a) & five_words(text_b)), (text_a, text_b)


def test_long_texts_are_hashed_in_pieces(monkeypatch):
    monkeypatch.setattr("hhh_jax.data.near_duplicates._BATCH", 3000)
    rng = random.Random(0)
    texts = [" ".join(sample(rng, size)) for size in (2000, 100, 3000, 1, 200, 300)]
    with Finder(0.9) as finder:
        finder.add([*texts, *texts])
        assert finder.earlier().tolist() == [-1] * 6 + list(range(6))


def test_near_duplicates_are_found_by_similarity():
    rng = random.Random(1)
    texts, true = [], []
    for _ in range(300):
        words = sample(rng, 200)
        texts.append(" ".join(words))
        for _ in range(rng.choice([0, 1, 3, 6, 12, 30])):
            words[rng.randrange(200)] = "changed"
        texts.append(" ".join(words))
        true.append(similarity(*texts[-2:]))
    with Finder(0.8) as finder:
        for start in range(0, len(texts), 70):  # in batches
            finder.add(texts[start : start + 70])
        earlier = finder.earlier()
    assert (earlier[::2] == -1).all()
    assert set(earlier[1::2]) <= {-1, *range(0, 600, 2)}
    for number, expected in enumerate(true):
        if abs(expected - 0.8) > 0.12:  # three sigma
            assert (earlier[2 * number + 1] == 2 * number) == (expected > 0.8), expected
    assert 50 < (earlier >= 0).sum() < 250


def test_the_first_of_equal_texts_stays():
    rng = random.Random(2)
    texts = [" ".join(sample(rng, 50)) for _ in range(5)]
    with Finder(1.0) as finder:
        finder.add([texts[i] for i in (0, 1, 0, 2, 0, 1, 3)])
        finder.add([])
        finder.add(["", "...", "short one", "short one"])
        assert finder.earlier().tolist() == [-1, -1, 0, -1, 0, 1, -1, -1, 7, -1, 9]


def test_slices_of_the_sorting_change_nothing(monkeypatch):
    rng = random.Random(3)
    texts = [" ".join(sample(rng, 30)) for _ in range(200)] * 2
    found = []
    for size in (8_000_000, 50):
        monkeypatch.setattr("hhh_jax.data.near_duplicates._SLICE", size)
        monkeypatch.setattr("hhh_jax.data.near_duplicates._ROWS", max(size // 3, 20))
        with Finder(0.8) as finder:
            finder.add(texts)
            found.append(finder.earlier())
    assert np.array_equal(*found)
    assert found[0].tolist() == [-1] * 200 + list(range(200))


@pytest.mark.parametrize(("threshold", "rows"), [(0.8, 6), (0.5, 3), (0.95, 16)])
def test_bands(threshold, rows):
    assert band_rows(threshold) == rows
    assert 1 - (1 - threshold**rows) ** (SIZE // rows) > 0.99


def test_nothing_and_wrong_thresholds():
    with Finder(0.8) as finder:
        assert finder.earlier().tolist() == []
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="dedup="):
            Finder(threshold)


def test_lines_keep_their_numbers():
    lines = Lines()
    for line in ("a", "", "ü\n"):
        lines.add(line)
    assert [lines[number] for number in (2, 0, 1)] == ["ü\n", "a", ""]
    lines.close()
