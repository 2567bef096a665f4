"""Packing against a naive construction, and packed pairs against each side computed alone."""

from collections import Counter
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PAD, make_pair, random_pairs, sides

from hhh_jax import train
from hhh_jax.data.packing import (
    Batch,
    DocumentStream,
    Placement,
    TokenizedPair,
    assign_rows,
    pack_pairs,
    row_sizes,
    tokenize_documents,
    tokenize_pairs,
)
from hhh_jax.data.records import Counts, Document, Pair
from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer
from hhh_jax.model import hidden_states, lm_logits, rewards
from hhh_jax.objectives import Outputs, token_logps

seeds = st.integers(0, 2**32 - 1)


# Pairs in rows


def expected_places(pair: TokenizedPair, share: bool) -> Counter:
    """What a pair's places hold, by definition: (token, position, branch, target, in LM loss, in response, side).

    A target is None where nothing is predicted; the side is that of the response token predicted, or None.
    """
    places: Counter = Counter()
    for side, sequence in enumerate(sides(pair)):
        for i, token in enumerate(sequence):
            shared = share and i < len(pair.context) - 1
            if shared and side == 1:
                continue  # is there already
            predicts = i + 1 < len(sequence)
            response = predicts and i + 1 >= len(pair.context)
            target = int(sequence[i + 1]) if predicts else None
            branch = 0 if shared else side + 1
            scored = side if response else None
            places[int(token), i, branch, target, predicts and side == 0, response, scored] += 1
    return places


def found_places(batch: Batch, placement: Placement, row: int, slot: int, pair: int) -> Counter:
    places: Counter = Counter()
    for t in np.nonzero(batch.segment_ids[row] == slot + 1)[0]:
        in_loss, response = bool(batch.loss_mask[row, t]), bool(batch.response_mask[row, t])
        target = int(batch.targets[row, t]) if in_loss or response else None
        option = int(placement.option_RxT[row, t])
        assert option == -1 or option // 2 == pair
        scored = option % 2 if option >= 0 else None
        token, position, branch = (int(x[row, t]) for x in (batch.tokens, batch.positions, batch.branch_ids))
        places[token, position, branch, target, in_loss, response, scored] += 1
    return places


def without_targets_of_bad_contexts(places: Counter) -> Counter:
    """A bad side's own context predicts nothing that counts, so its targets may be anything."""
    result: Counter = Counter()
    for (token, position, branch, target, in_loss, response, scored), n in places.items():
        counts = in_loss or response
        result[token, position, branch, target if counts else None, in_loss, response, scored] += n
    return result


@settings(max_examples=100, deadline=None)
@given(seed=seeds, n=st.integers(1, 9), length=st.integers(22, 50), slots=st.integers(1, 4), share=st.booleans())
def test_every_token_is_placed_once_and_as_defined(seed, n, length, slots, share):
    pairs = random_pairs(np.random.default_rng(seed), n, longest=5)
    batch, placement = pack_pairs(pairs, length, slots, PAD, sizes=[n // 2, n, n + 1], share_context=share)
    assert batch.tokens.shape == (len(batch.tokens), length) and batch.pair_mask.shape[1] == slots
    assert (batch.pair_mask == (placement.pair_RxS >= 0)).all()
    assert sorted(placement.pair_RxS[batch.pair_mask]) == list(range(n))
    for row, slot in np.argwhere(batch.pair_mask):
        p = int(placement.pair_RxS[row, slot])
        expected = without_targets_of_bad_contexts(expected_places(pairs[p], share))
        assert found_places(batch, placement, row, slot, p) == expected
        assert sum(expected.values()) == pairs[p].n_tokens(share)
        for side, sequence in enumerate(sides(pairs[p])):
            at = batch.score_positions[row, slot, side]
            assert batch.segment_ids[row, at] == slot + 1 and batch.branch_ids[row, at] == side + 1
            assert batch.positions[row, at] == len(sequence) - 1 and batch.tokens[row, at] == reference.EOC
    padding = batch.segment_ids == 0
    assert padding.sum() == batch.tokens.size - sum(pair.n_tokens(share) for pair in pairs)
    assert (batch.tokens[padding] == PAD).all() and (placement.option_RxT[padding] == -1).all()
    assert not batch.loss_mask[padding].any() and not batch.response_mask[padding].any()
    # No smaller size would have done.
    used = len(assign_rows([pair.n_tokens(share) for pair in pairs], length, slots))
    assert len(batch.tokens) == min(size for size in (n // 2, n, n + 1) if size >= used)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=30), slots=st.integers(1, 5))
def test_rows_hold_every_item_once_within_their_limits(sizes, slots):
    rows = assign_rows(sizes, 20, slots)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(len(row) <= slots and sum(sizes[i] for i in row) <= 20 for row in rows)
    # First-fit: what opens a row would not fit into any before it.
    for r, row in enumerate(rows):
        for before in rows[:r]:
            placed = [i for i in before if (-sizes[i], i) < (-sizes[row[0]], row[0])]
            assert len(placed) == slots or sum(sizes[i] for i in placed) + sizes[row[0]] > 20


def test_first_fit_decreasing_by_hand():
    assert assign_rows([4, 7, 3, 6, 10], 10, 4) == [[4], [1, 2], [3, 0]]
    assert assign_rows([4, 7, 3, 6, 10], 10, 1) == [[4], [1], [3], [0], [2]]


def test_what_does_not_fit_is_an_error():
    pair = make_pair("long", [5] * 10, [6], [7])
    with pytest.raises(ValueError, match="15 tokens and a row 12"):
        pack_pairs([make_pair("fits", [], [6], [7]), pair], 12, 2, PAD, sizes=[2])
    assert pair.n_tokens() == 9 + 3 + 3
    assert pair.n_tokens(share_context=False) == 12 + 12
    with pytest.raises(ValueError, match=r"3 pairs need 3 rows of 15 tokens; the sizes are \[1, 2\]"):
        pack_pairs([pair] * 3, 15, 2, PAD, sizes=[1, 2])


@pytest.mark.parametrize(
    "n_pairs, multiple, sizes",
    [(32, 1, [8, 16, 24, 32]), (10, 1, [3, 5, 8, 10]), (32, 12, [12, 24, 36]), (3, 8, [8]), (1, 1, [1])],
)
def test_row_sizes(n_pairs, multiple, sizes):
    assert row_sizes(n_pairs, multiple) == sizes


def test_fewer_row_sizes():
    assert row_sizes(32, 1, 2) == [16, 32]
    assert row_sizes(9, 2, 1) == [10]


# Packed pairs against each side alone

MIXED = [
    *random_pairs(np.random.default_rng(0), 3),
    make_pair("empty context", [], [9, 10], [11, 12, 13]),
    make_pair("one-token context", [14], [15, 16], [17]),
    make_pair("longest", [18, 19, 20, 21, 22, 23], [24, 25, 26, 27, 28], [29]),
    make_pair("good/binarized", [], [2, 30, 31, 32], [3, 30, 31, 32]),
    make_pair("one token each", [], [33], [34]),
]
CONFIG = reference.step_config("preference", reference.tiny(), lam=0.7, mu=0.5)
ROWS, LENGTH = 6, 40


@reference.jit
def packed_result(params, batch: Batch):
    """Gradient of the loss; loss, target log-probabilities and rewards."""

    def loss(params):
        objective = train.objectives.make_objective("preference", CONFIG.lam, CONFIG.mu)
        terms, _ = train.batch_loss(CONFIG, params, batch, {name: t.weight(batch) for name, t in objective.items()})
        hidden = hidden_states(CONFIG.model, params, batch.tokens, batch.segment_ids, batch.branch_ids, batch.positions)
        outputs = Outputs(params, hidden, batch)
        return sum(terms.values()), (sum(terms.values()), outputs.target_logps(), *outputs.pair_rewards())

    return jax.grad(loss, has_aux=True)(params)


@pytest.fixture(scope="module")
def alone():
    """Parameters and the gradient of ``0.7 L_PM + 0.5 L_LM(good)`` with every side in a row by itself, unpacked."""
    params = reference.random_params(CONFIG.model)
    sequences = [side for pair in MIXED for side in sides(pair)]
    n, length = len(sequences), max(len(sequence) for sequence in sequences)
    tokens, segments, sizes = np.zeros((n, length), np.int32), np.zeros((n, length), np.int32), []
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        segments[row, : len(sequence)] = 1
        sizes.append(len(sequence))
    sizes = np.array(sizes)
    positions = np.broadcast_to(np.arange(length), tokens.shape)

    @reference.jit
    @jax.value_and_grad
    def loss(params):
        hidden = hidden_states(CONFIG.model, params, tokens, segments, np.zeros_like(tokens), positions)
        rewards_N = rewards(params, hidden[np.arange(n), sizes - 1])
        pm = jnp.log1p(jnp.exp(rewards_N[1::2] - rewards_N[::2])).mean()
        logits = lm_logits(params, hidden[::2, :-1].reshape(-1, CONFIG.model.d_model))
        nll = -token_logps(logits, tokens[::2, 1:].reshape(-1))
        counted = (positions[::2, 1:] < sizes[::2, None]).reshape(-1)
        return 0.7 * pm + 0.5 * (nll * counted).sum() / counted.sum()

    return params, *loss(params)


@pytest.mark.parametrize("share", [True, False])
def test_packed_pairs_equal_each_side_alone(alone, share):
    params, loss, gradient = alone
    batch, placement = pack_pairs(MIXED, LENGTH, 3, PAD, sizes=[ROWS], share_context=share)
    assert (batch.segment_ids[-1] == 0).all()  # a spare row, which weighs nothing
    packed_gradient, (packed_loss, logps_RxT, good_RxS, bad_RxS) = packed_result(params, batch)
    for row, slot in np.argwhere(batch.pair_mask):
        p = int(placement.pair_RxS[row, slot])
        for side, sequence in enumerate(sides(MIXED[p])):
            expected = reference.target_logps(CONFIG.model, params, sequence)
            n_response = len(sequence) - max(len(MIXED[p].context), 1)
            at = np.nonzero(placement.option_RxT[row] == 2 * p + side)[0]
            np.testing.assert_allclose(logps_RxT[row, at], expected[-n_response:], atol=1e-5)
            if side == 0:
                whole = (batch.segment_ids[row] == slot + 1) & batch.loss_mask[row]
                np.testing.assert_allclose(logps_RxT[row, whole], expected, atol=1e-5)
            found = (good_RxS, bad_RxS)[side][row, slot]
            assert float(found) == pytest.approx(reference.reward(CONFIG.model, params, sequence), abs=1e-5)
    assert float(packed_loss) == pytest.approx(float(loss), rel=1e-5)
    reference.assert_trees_close(packed_gradient, gradient, 2e-5)


# Text to pairs


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "the cat sat on the mat and the hat sat on the cat GOOD:the BAD:the " * 20
    return train_tokenizer([text], 280)


def make_text_pair(context: str, good: str, bad: str, name: str = "x") -> Pair:
    return Pair(name, context, good, bad, f"group of {name}")


def test_context_and_response_are_tokenized_apart(tokenizer):
    """A merge across the border would give the response another first token after each context."""
    assert len(tokenizer.encode("the")) == 1
    (pair,) = tokenize_pairs([make_text_pair("on t", "he cat", "he mat")], tokenizer, 30, 60, Counts(1, 1))
    assert pair.context.tolist() == tokenizer.encode("on t").tolist()
    assert pair.good.tolist() == [*tokenizer.encode("he cat"), tokenizer.eoc_id]
    assert pair.bad.tolist() == [*tokenizer.encode("he mat"), tokenizer.eoc_id]
    assert (pair.id, pair.group, pair.n_bytes) == ("x", "group of x", (6, 6))
    assert pair.context.dtype == pair.good.dtype == np.int32


def test_truncation_takes_context_from_the_left(tokenizer):
    context = "the cat sat on the mat and the hat"
    whole = tokenizer.encode(context)
    good, bad = "the cat sat", "cat"
    n_good = len(tokenizer.encode(good)) + 1
    for max_tokens in (n_good, n_good + 1, n_good + 3, n_good + len(whole), 100):
        (pair,) = tokenize_pairs([make_text_pair(context, good, bad)], tokenizer, max_tokens, 200, Counts(1, 1))
        room = max_tokens - n_good  # that of the longer side; the shorter one sees no more
        assert pair.context.tolist() == whole[len(whole) - min(room, len(whole)) :].tolist()
        assert pair.good.tolist() == [*tokenizer.encode(good), tokenizer.eoc_id]
        assert pair.bad.tolist() == [*tokenizer.encode(bad), tokenizer.eoc_id]


def test_dropped_pairs_are_counted(tokenizer):
    pairs = [
        make_text_pair("the", "cat", "mat", "kept"),
        make_text_pair("the", "cat", "cat", "equal"),
        make_text_pair("the", "z" * 40, "mat", "long"),
        make_text_pair("the", "z" * 19, "y" * 19, "wide"),
    ]
    counts = Counts(read=7, kept=4, dropped=Counter({"empty": 3}))
    kept = tokenize_pairs(pairs, tokenizer, 20, 39, counts)
    assert [pair.id for pair in kept] == ["kept"]
    assert counts.as_dict() == {
        "read": 7,
        "kept": 1,
        "dropped": {
            "both sides together longer than a row": 1,
            "empty": 3,
            "response longer than max_tokens": 1,
            "sides equal after tokenization": 1,
        },
    }
    assert counts.read == counts.kept + sum(counts.dropped.values())
    assert len(tokenize_pairs(pairs[3:], tokenizer, 20, 40, Counts(1, 1))) == 1


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.tuples(*[st.text("aé the<cat>|", max_size=12)] * 3), max_size=6),
    max_tokens=st.integers(6, 20),
    binarize=st.booleans(),
)
def test_counts_add_up_and_nothing_is_too_long(tokenizer, texts, max_tokens, binarize):
    pairs = [make_text_pair(*text, name=str(i)) for i, text in enumerate(texts)]
    counts = Counts(len(pairs), len(pairs))
    kept = tokenize_pairs(pairs, tokenizer, max_tokens, 2 * max_tokens, counts, binarize=binarize)
    assert counts.read == len(pairs) == counts.kept + sum(counts.dropped.values())
    assert len(kept) == counts.kept * (2 if binarize else 1)
    for pair in kept:
        assert max(len(side) for side in sides(pair)) <= max_tokens
        assert pair.n_tokens() <= 2 * max_tokens
        assert pair.good[-1] == pair.bad[-1] == tokenizer.eoc_id
        assert not np.array_equal(pair.good, pair.bad)


def test_binarized_pairs_differ_at_their_first_token(tokenizer):
    """Section 4.1: A > B becomes GOOD:A > BAD:A and BAD:B > GOOD:B."""
    counts = Counts(1, 1)
    first, second = tokenize_pairs([make_text_pair("the ", "cat", "mats")], tokenizer, 30, 60, counts, binarize=True)
    text = [[tokenizer.decode(side) for side in (pair.good, pair.bad)] for pair in (first, second)]
    assert text == [["GOOD:the cat", "BAD:the cat"], ["BAD:the mats", "GOOD:the mats"]]
    for pair, size in ((first, 3), (second, 4)):
        assert len(pair.context) == 0 and pair.good[0] != pair.bad[0] and pair.n_bytes == (size, size)
        assert pair.good[-1] == pair.bad[-1] == tokenizer.eoc_id
        assert pair.n_tokens() == len(pair.good) + len(pair.bad)  # shares nothing
    assert [first.id, second.id] == ["x/good", "x/bad"]
    assert counts.as_dict() == {"read": 1, "kept": 1, "dropped": {}}


def test_without_end_of_context_sides_are_as_written(tokenizer):
    """One may begin the other; a response of which nothing would be predicted is dropped and counted."""
    counts = Counts(3, 3)
    texts = [("on", "the", "the cat"), ("", "the", "the cat"), ("", "the cat", "the hat")]
    pairs = [make_text_pair(*text, name=str(i)) for i, text in enumerate(texts)]
    kept = tokenize_pairs(pairs, tokenizer, 20, 60, counts, end_of_context=False)
    assert [pair.id for pair in kept] == ["0", "2"]
    assert counts.as_dict()["dropped"] == {"response without a token to predict": 1}
    for pair, (context, good, bad) in zip(kept, (texts[0], texts[2]), strict=True):
        for tokens, text in ((pair.context, context), (pair.good, good), (pair.bad, bad)):
            assert tokens.tolist() == tokenizer.encode(text).tolist()
    batch, _ = pack_pairs(kept, 60, 4, tokenizer.pad_id, sizes=[1])
    assert tokenizer.eoc_id not in batch.tokens
    for slot, pair in enumerate(kept):
        ends = batch.tokens[0, batch.score_positions[0, slot]]
        assert ends.tolist() == [pair.good[-1], pair.bad[-1]]
    binary = tokenize_pairs(pairs, tokenizer, 20, 60, Counts(3, 3), binarize=True, end_of_context=False)
    assert [tokenizer.decode(pair.good) for pair in binary[:2]] == ["GOOD:onthe", "BAD:onthe cat"]
    assert len(binary) == 6


def test_documents_end_with_the_delimiter(tokenizer):
    documents = [Document("a", "the cat", "a"), Document("b", "<|endofcontext|>", "b")]
    first, second = tokenize_documents(documents, tokenizer)
    assert first.tolist() == [*tokenizer.encode("the cat"), tokenizer.eoc_id]
    assert tokenizer.decode(second) == "<|endofcontext|>" and (second == tokenizer.eoc_id).sum() == 1


# Documents

document_sizes = st.lists(st.integers(1, 15), min_size=1, max_size=8)


def make_documents(sizes: list[int]) -> list[np.ndarray]:
    """Token ``100 d + j`` is number j of document d."""
    return [100 * d + np.arange(size, dtype=np.int32) for d, size in enumerate(sizes)]


def check_rows(batch: Batch, placement: Placement, sizes: list[int]) -> list[int]:
    """Every place against the naive reading of its token; returns the tokens in order."""
    for row in range(len(batch.tokens)):
        segment, before = 0, None
        for t in range(batch.tokens.shape[1]):
            if batch.segment_ids[row, t] == 0:
                assert batch.tokens[row, t] == PAD and not batch.loss_mask[row, t:].any()
                assert (batch.segment_ids[row, t:] == 0).all()
                break
            d, j = divmod(int(batch.tokens[row, t]), 100)
            if before is None or d != before:
                segment, began, before = segment + 1, j, d
                assert j == 0 or t == 0  # only a cut between rows begins within a document
            assert batch.segment_ids[row, t] == segment and batch.positions[row, t] == j - began
            assert batch.loss_mask[row, t] == (j + 1 < sizes[d])
            if batch.loss_mask[row, t]:
                assert batch.targets[row, t] == 100 * d + j + 1 and placement.option_RxT[row, t] == d
            else:
                assert placement.option_RxT[row, t] == -1
    assert not batch.branch_ids.any()
    return batch.tokens[batch.segment_ids > 0].tolist()


@settings(max_examples=60, deadline=None)
@given(sizes=document_sizes, length=st.integers(2, 20), seed=st.integers(0, 100))
def test_an_epoch_is_the_rows_of_the_documents_end_to_end(sizes, length, seed):
    stream, total = DocumentStream(make_documents(sizes), length, seed), sum(sizes)
    rows = stream.rows_per_epoch
    assert rows == max(total // length, 1)
    for epoch in range(3):
        tokens = check_rows(*stream.batch(epoch * rows, rows, PAD), sizes)
        assert len(tokens) == len(set(tokens)) == min(rows * length, total)
        chunks = [tokens[at : at + length] for at in range(0, len(tokens), length)]
        ends = {chunk[-1] for chunk in chunks}
        assert all(chunk[0] % 100 == 0 or chunk[0] - 1 in ends for chunk in chunks)
        for chunk in chunks:  # one document to its end, then the next from its beginning
            for one, after in pairwise(chunk):
                assert after == one + 1 or (one % 100 == sizes[one // 100] - 1 and after % 100 == 0)


@settings(max_examples=60, deadline=None)
@given(sizes=document_sizes, length=st.integers(2, 20), first=st.integers(0, 40), rows=st.integers(1, 5))
def test_any_row_is_found_at_once(sizes, length, first, rows):
    documents = make_documents(sizes)
    read_in_order = DocumentStream(documents, length, 7)
    expected = [read_in_order.batch(row, 1, PAD) for row in range(first + rows)][first:]
    batch, placement = DocumentStream(documents, length, 7).batch(first, rows, PAD)
    same = jax.tree.map(lambda a, *b: bool((a == np.concatenate(b)).all()), batch, *[b for b, _ in expected])
    assert all(jax.tree.leaves(same))
    assert (placement.option_RxT == np.concatenate([p.option_RxT for _, p in expected])).all()


@settings(max_examples=60, deadline=None)
@given(sizes=document_sizes, length=st.integers(2, 20), more=st.integers(0, 3))
def test_evaluation_reads_every_token_once_in_the_given_order(sizes, length, more):
    stream = DocumentStream(make_documents(sizes), length, None)
    rows = stream.rows_per_epoch
    batch, placement = stream.batch(0, rows + more, PAD)
    tokens = check_rows(batch, placement, sizes)
    assert tokens == np.concatenate(make_documents(sizes)).tolist()
    assert batch.loss_mask.sum() == sum(sizes) - len(sizes)  # all but the first of each document
    assert not batch.segment_ids[rows:].any()


def test_the_order_depends_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        stream = DocumentStream(make_documents([1] * 50), 50, seed)
        return tuple(stream.batch(epoch, 1, PAD)[0].tokens[0] // 100)

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(each) == list(range(50)) for each in orders)
    assert len(set(orders)) == 9 and order(1, 1) == orders[4]


def test_rows_of_a_long_document_lie_apart():
    """As one book among modules: no batch, and no stretch of an epoch, is of it alone."""
    stream = DocumentStream([np.arange(6400, dtype=np.int32)], 64, 0)
    epochs = [stream.batch(epoch * 100, 100, PAD)[0].tokens[:, 0] // 64 for epoch in (0, 1)]
    assert all(sorted(rows) == list(range(100)) for rows in epochs) and (epochs[0] != epochs[1]).any()
    for rows in epochs:
        assert np.mean(np.abs(np.diff(rows))) == pytest.approx(101 / 3, abs=8)  # of a uniform permutation
