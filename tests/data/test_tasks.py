import os
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from hhh_jax.data import stdlib, tasks
from hhh_jax.data.records import SPLITS, content_sha
from hhh_jax.data.stdlib import Module

RANKED = [task for task, kind in tasks.KINDS.items() if kind == "ranked"]
AT_LEAST = {"train": 2000, "validation": 300, "test": 1000}


def cycles(order):
    """The number of cycles of a permutation, by following them."""
    seen, count = set(), 0
    for start in range(len(order)):
        count += start not in seen
        while start not in seen:
            seen.add(start)
            start = order[start]
    return count


def inversions(order):
    return sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order)))


@given(st.integers(10, 16), st.sampled_from(tasks.WORD_LEVELS), st.integers())
def test_a_level_of_words_is_the_cayley_distance(n, level, seed):
    order = tasks.scramble_words(list(range(n)), level, random.Random(seed))
    assert n - cycles(order) == level
    assert order[0] == 0


@given(st.integers(10, 16), st.integers())
def test_the_highest_level_moves_every_word_but_the_first(n, seed):
    order = tasks.scramble_words(list(range(n)), n - 2, random.Random(seed))
    assert [place for place, k in enumerate(order) if place == k] == [0]


@given(st.integers(4, 6), st.sampled_from(tasks.LINE_LEVELS), st.integers())
def test_a_level_of_lines_is_the_kendall_distance(n, level, seed):
    assert inversions(tasks.scramble_lines(list(range(n)), level, random.Random(seed))) == level


def test_orders_of_lines_are_drawn_alike():
    rng = random.Random(0)
    drawn = Counter(tuple(tasks.scramble_lines(list(range(4)), 2, rng)) for _ in range(5000))
    assert len(drawn) == 5  # permutations of 4 with 2 inversions
    assert min(drawn.values()) > 900


@pytest.mark.parametrize("task", tasks.TASKS)
def test_sizes_ids_and_groups(task, task_pairs):
    groups = [{pair.group for pair in task_pairs[task, split]} for split in SPLITS]
    pretraining = {part.path for split in SPLITS for part in stdlib.modules("pretraining", split)}
    assert not (groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])
    assert not pretraining & set().union(*groups)
    for split, group in zip(SPLITS, groups, strict=True):
        pairs = task_pairs[task, split]
        assert len(pairs) >= AT_LEAST[split]
        assert len({pair.id for pair in pairs}) == len(pairs)
        assert len(group) >= 20
        for pair in pairs:
            assert pair.id.startswith(pair.group + ":")
            assert pair.good != pair.bad
            assert pair.good.strip() and pair.bad.strip()


@pytest.mark.parametrize("task", RANKED)
def test_ranked_sides_differ_in_order_alone(task, task_pairs, stdlib_tokenizer):
    pairs = task_pairs[task, "test"]
    goods = stdlib_tokenizer.encode_batch([pair.good for pair in pairs])
    bads = stdlib_tokenizer.encode_batch([pair.bad for pair in pairs])
    for pair, good, bad in zip(pairs, goods, bads, strict=True):
        assert pair.context == ""
        assert Counter(pair.good.split(" ")) == Counter(pair.bad.split(" ")) or task == "line_order"
        assert Counter(pair.good.split("\n")) == Counter(pair.bad.split("\n")) or task == "word_order"
        assert Counter(good.tolist()) == Counter(bad.tolist())


@pytest.mark.parametrize("task", RANKED)
def test_chains(task, task_pairs):
    """Three levels make two pairs, whose middle text is bad in one and good in the other."""
    chains: dict[str, list] = {}
    for pair in task_pairs[task, "train"]:
        key, better, worse = re.fullmatch(r"(.*):(\d)<(\d)", pair.id).groups()
        assert better < worse
        chains.setdefault(key, []).append((better, worse, pair))
    levels = Counter()
    for links in chains.values():
        (a, b, first), (b_too, c, second) = sorted(links, key=lambda link: link[0])
        assert b == b_too
        assert first.bad == second.good
        levels[a, b, c] += 1
    assert len(levels) == 10  # all triples of five levels
    assert min(levels.values()) > 0.5 * max(levels.values())
    with_original = sum(count for (a, _, _), count in levels.items() if a == "0")
    assert 0.25 < with_original / (2 * len(chains)) < 0.35


@pytest.mark.parametrize("task", RANKED)
def test_levels_of_real_pairs_are_distances_from_the_source(task, task_pairs):
    """Where a pair has the original, the permutation, recovered from the texts, has the distance named."""
    checked = 0
    for pair in task_pairs[task, "test"]:
        match = re.search(r":0<(\d)$", pair.id)
        if match:
            cut = " " if task == "word_order" else "\n"
            good, bad = (side.removeprefix("\n").split(cut) for side in (pair.good, pair.bad))
            if len(set(good)) == len(good):
                order = [good.index(piece) for piece in bad]
                distance = len(order) - cycles(order) if task == "word_order" else inversions(order)
                assert distance == int(match[1])
                checked += 1
    assert checked > 200


def test_texts_are_in_their_source_file(task_pairs):
    files = {part.path: part for part in stdlib.modules("tasks", "test")}
    for pair in task_pairs["line_order", "test"]:
        source = {line.strip() for line in files[pair.group].text.expandtabs().split("\n")}
        assert {line.strip() for line in pair.good.removeprefix("\n").split("\n")} <= source
    intact = [pair for pair in task_pairs["order_label", "test"] if pair.good == tasks.INTACT]
    bare = {path: re.sub(r"[\s#\\]+", " ", part.text) for path, part in files.items()}
    found = [
        re.sub(r"[\s#\\]+", " ", pair.context.removesuffix("\nOrder:")) in bare[pair.group] for pair in intact
    ]
    assert np.mean(found) > 0.99  # the rest have an escaped character


def test_test_text_is_not_in_the_pretraining_text(task_pairs):
    """Eight words in a row of an intact test text hardly ever stand in a pretraining document."""

    def shingles(text):
        words = text.replace("#", " ").split()
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    seen = set().union(*(shingles(document.text) for document in stdlib.documents("train")))
    intact = [pair for pair in task_pairs["order_label", "test"] if pair.good == tasks.INTACT]
    copies = sum(bool(shingles(pair.context.removesuffix("\nOrder:")) & seen) for pair in intact)
    assert copies / len(intact) < 0.01


def test_order_label_is_balanced_and_its_labels_are_two(task_pairs):
    for split in SPLITS:
        pairs = task_pairs["order_label", split]
        labels = Counter((pair.good, pair.bad) for pair in pairs)
        assert set(labels) == {(" intact", " mixed"), (" mixed", " intact")}
        assert abs(labels[" intact", " mixed"] - labels[" mixed", " intact"]) <= 1
        bags = Counter(tuple(sorted(pair.context.removesuffix("\nOrder:").split())) for pair in pairs)
        assert max(bags.values()) == 1  # a window has one status


def test_every_docstring_is_good_once_and_bad_once(task_pairs):
    for split in SPLITS:
        pairs = task_pairs["docstring_match", split]
        goods = Counter(pair.good for pair in pairs)
        assert goods == Counter(pair.bad for pair in pairs)
        assert max(goods.values()) == 1
        kind = {pair.good: pair.context.split()[0] for pair in pairs}
        assert all(kind[pair.bad] == kind[pair.good] for pair in pairs)
        assert set(kind.values()) == {"def", "class"}


def test_word_order_label_poses_the_comparisons_of_word_order(task_pairs):
    for split in SPLITS:
        plain = {pair.id: pair for pair in task_pairs["word_order", split]}
        posed = task_pairs["word_order_label", split]
        assert [pair.id for pair in posed] == [pair.id for pair in task_pairs["word_order", split]]
        answers = Counter()
        for pair in posed:
            texts = re.fullmatch(r"1: (.*)\n2: (.*)\nBetter:", pair.context).groups()
            right = int(pair.good) - 1
            assert {pair.good, pair.bad} == {" 1", " 2"}
            assert texts[right] == plain[pair.id].good and texts[1 - right] == plain[pair.id].bad
            # Balanced also among the pairs that have the original and at every level.
            answers[pair.good] += 1
            answers[pair.id[-3:], pair.good] += 1
        assert answers[" 1"] == answers[" 2"]
        if split == "train":
            for better in {key[0] for key in answers if isinstance(key, tuple)}:
                share = answers[better, " 1"] / (answers[better, " 1"] + answers[better, " 2"])
                assert 0.4 < share < 0.6


def test_lengths(task_pairs, stdlib_tokenizer):
    for task in tasks.TASKS:
        pairs = task_pairs[task, "test"]
        context, good, bad = (
            np.array([len(ids) for ids in stdlib_tokenizer.encode_batch([getattr(p, field) for p in pairs])])
            for field in ("context", "good", "bad")
        )
        sides = context + np.maximum(good, bad) + 1
        limit = 128 if task == "word_order_label" else 64
        assert np.mean(sides > limit) < 0.01
        assert 20 < np.median(sides) < 80


@pytest.mark.parametrize("task", tasks.TASKS)
def test_trivial_baselines_fail(task, task_pairs):
    train, test = task_pairs[task, "train"][:2000], task_pairs[task, "test"]
    assert abs(half_ties([len(pair.bad) - len(pair.good) for pair in test]) - 0.5) < 0.04  # shorter is better
    most = max(Counter(pair.good for pair in test).values()) / len(test)
    assert most < 0.51  # the majority label
    assert bag_of_words_accuracy(train, test) <= 0.60


def bag_of_words_accuracy(train, test):
    """Logistic regression on the pairs' differences of word counts; a label is joined to the context's."""
    label_form = len({pair.good for pair in train}) == 2

    def text(pair, side):
        if not label_form:
            return side
        return " ".join(f"{word}{side.strip()}" for word in re.findall(r"\w+|[^\w\s]", pair.context))

    count = CountVectorizer(token_pattern=r"\w+|[^\w\s]", lowercase=False)
    count.fit([text(pair, side) for pair in train for side in (pair.good, pair.bad)])
    train_PxV, test_PxV = (
        count.transform([text(pair, pair.good) for pair in pairs])
        - count.transform([text(pair, pair.bad) for pair in pairs])
        for pairs in (train, test)
    )
    labels = np.repeat([1, 0], len(train))
    fitted = LogisticRegression(fit_intercept=False, max_iter=300, tol=1e-3)
    fitted.fit(sp.vstack([train_PxV, -train_PxV]), labels)
    return half_ties(np.round(test_PxV @ fitted.coef_[0], 9))


def half_ties(margins):
    margins = np.asarray(margins)
    return np.mean(margins > 0) + 0.5 * np.mean(margins == 0)


def test_the_bag_of_words_baseline_can_find_something(task_pairs):
    """A planted word is found: the failures above say something."""
    planted = [
        type(pair)(pair.id, pair.context, pair.good + " indeed", pair.bad + " hardly", pair.group)
        for pair in task_pairs["word_order", "test"][:600]
    ]
    assert bag_of_words_accuracy(planted[:300], planted[300:]) == 1.0


def test_seed_gives_another_draw_of_the_same_items():
    here, again, other = (tasks.pairs("order_label", "validation", seed) for seed in (0, 0, 1))
    assert here == again
    assert [pair.id for pair in here] != [pair.id for pair in other]
    assert {pair.id for pair in here} == {pair.id for pair in other}
    assert {pair.context for pair in here} != {pair.context for pair in other}


def test_hash_randomization_changes_nothing(task_pairs):
    code = (
        "from hhh_jax.data import tasks, records\n"
        "print([records.content_sha(tasks.pairs(task, 'validation')) for task in tasks.TASKS])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([content_sha(task_pairs[task, "validation"]) for task in tasks.TASKS])


CODE = '''def f(a, b):
    """Docstring of f, on
    two lines. And a second sentence."""
    first = a
    second = b
    # a comment
    third = a
    fourth = """
    a string
    """
    fifth = a
    if fifth:
        sixth = b
        return sixth
'''


def test_lines_of_code_come_from_runs_without_comments_or_long_strings(monkeypatch):
    monkeypatch.setattr(stdlib, "modules", lambda purpose, split: [Module("m.py", CODE, purpose, split)])
    (key, group, lines), *rest = tasks._line_windows.__wrapped__("train")
    assert (key, group) == ("m.py:11", "m.py")
    assert lines == ["fifth = a", "if fifth:", "    sixth = b", "    return sixth"]
    assert not rest


def definitions_of(text, monkeypatch):
    monkeypatch.setattr(stdlib, "modules", lambda purpose, split: [Module("m.py", text, purpose, split)])
    return tasks._definitions("train")


def test_definitions_of_a_module(monkeypatch):
    text = CODE + 'class Thing(Base, metaclass=M):\n    """A class about things."""\n    x = 1\n'
    assert definitions_of(text, monkeypatch) == [
        ("m.py:1:0", "m.py", "def f(a, b):", "Docstring of f, on two lines."),
        ("m.py:1:1", "m.py", "def f(a, b):", "And a second sentence."),
        ("m.py:15:0", "m.py", "class Thing(Base):", "A class about things."),
    ]


def test_two_sentences_of_a_docstring_are_taken_and_cut_short(monkeypatch):
    text = (
        "def name(first_argument, second_argument, third_argument):\n"
        '    """name(first) -> second, and no letter is below a hundred of them in this very long line of text.\n\n'
        "    Too short.\n\n    * a list of numbers\n\n"
        '    This one is prose again.  A third sentence is left out."""\n'
        'def copy():\n    """This one is prose again."""\n'
    )
    assert definitions_of(text, monkeypatch) == [
        (f"m.py:1:{number}", "m.py", "def name(first_argument, second_argument, ...", sentence)
        for number, sentence in enumerate((
            "name(first) -> second, and no letter is below a hundred of them in this ...",
            "This one is prose again.",
        ))
    ]  # fmt: skip


def test_windows_of_prose(monkeypatch):
    text = (
        '"""This first sentence has just enough of words to be\ntaken as a window. Too short.\n\n'
        '* This list item has enough words to be a window but is no prose.\n"""\n'
        "# The comment is prose as well, and it runs on for more than the sixteen words of a long window\n"
    )
    monkeypatch.setattr(stdlib, "modules", lambda purpose, split: [Module("m.py", text, purpose, split)])
    assert [(key, " ".join(words)) for key, _, words in tasks.windows.__wrapped__("train")] == [
        ("m.py:0:0", "This first sentence has just enough of words to be taken as a window"),
        ("m.py:6:0", "The comment is prose as well, and it runs on for more than the sixteen words"),
    ]
