"""Every option's score against its text run alone, with and without a prefix; and what becomes of items without one."""

from typing import Any

import jax
import numpy as np
import pytest
import reference
from reference import random_params, tiny

from hhh_jax import scoring
from hhh_jax.data.records import MultipleChoice
from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer
from hhh_jax.errors import UserError
from hhh_jax.scoring import NO_PREFIX, Scorer, compute_prefix, score_branches, score_options
from hhh_jax.sharding import make_mesh

MODEL = tiny(vocab_size=270, n_layer=1)
SEEDS = (3, 8)
LENGTH = 96
EOC = np.zeros(1, np.int32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["one two three four five six seven eight nine ten eleven twelve"] * 3, 270)


@pytest.fixture(scope="module")
def params() -> list[dict[str, Any]]:
    return [random_params(MODEL, seed) for seed in SEEDS]


def scorer_of(params: list, length: int = LENGTH, rows: int = 2) -> Scorer:
    stacked = jax.tree.map(lambda *x: np.stack(x), *params)
    return Scorer(MODEL, stacked, len(params), make_mesh(), rows, length, 1)


def choice(name: str, context: str, options: list[str], label: int = 0) -> MultipleChoice:
    return MultipleChoice(name, context, tuple(options), label, f"group of {name}")


ITEMS = [
    choice("two", "one two", [" three", " eleven"]),
    choice("many", "what comes after nine? It is", [f" {word} indeed" for word in "abcdefghijklm"], 3),
    choice("space at the end", "five six ", ["seven", "one"], 1),
    choice("no context", "", [" eight", " nine"]),
    choice("one option, one letter", "q", ["a"]),
]


def logp(params: dict, context: np.ndarray, option: np.ndarray) -> float:
    return reference.target_logps(MODEL, params, np.concatenate([context, option]))[-len(option) :].sum()


@pytest.mark.parametrize("prompt", ["", "-", "the numbers in order, from one on: one two three\n\n"])
def test_all_scores_equal_each_text_alone(params, tokenizer, prompt):
    """An item of thirteen options is more than a row holds."""
    scorer = scorer_of(params)
    prefix = compute_prefix(scorer, tokenizer.encode(prompt))
    results = score_options(
        scorer, tokenizer, ITEMS, prefix, {"bare": None, "empty": "\n\nHuman: "}, with_reward=True
    )
    assert [result.item for result in results] == ITEMS
    before = tokenizer.encode(prompt)
    for item, result in zip(ITEMS, results, strict=True):
        assert (result.error, result.truncated) == ("", 0)
        context = tokenizer.encode(item.context.rstrip(" "))
        if not len(context) and not prompt:
            context = EOC
        for i, option in enumerate(item.options):
            tokens = tokenizer.encode(" " * item.context.endswith(" ") + option)
            assert (result.n_tokens_N[i], result.n_bytes_N[i]) == (len(tokens), len(option))
            for g in range(2):
                whole = np.concatenate([before, context])
                tolerance = 2e-5 * len(tokens)
                assert result.logp_GxN[g, i] == pytest.approx(logp(params[g], whole, tokens), abs=tolerance)
                bare, empty = result.unconditional["bare"][g, i], result.unconditional["empty"][g, i]
                assert bare == pytest.approx(logp(params[g], EOC, tokens), abs=tolerance)
                nothing = np.concatenate([before, tokenizer.encode("\n\nHuman:")])
                assert empty == pytest.approx(logp(params[g], nothing, tokens), abs=tolerance)
                reward = reference.reward(MODEL, params[g], np.concatenate([whole, tokens, EOC]))
                assert result.reward_GxN[g, i] == pytest.approx(reward, abs=2e-5)
        np.testing.assert_allclose(result.by("mean"), result.logp_GxN / result.n_tokens_N)
        np.testing.assert_allclose(result.by("mi:empty"), result.logp_GxN - result.unconditional["empty"])


def test_without_end_of_context_the_reward_is_of_the_last_token(params, tokenizer):
    scorer = scorer_of(params)._replace(end_of_context=False)
    (result,) = score_options(scorer, tokenizer, ITEMS[:1], with_reward=True)
    for i, option in enumerate(ITEMS[0].options):
        tokens = tokenizer.encode(ITEMS[0].context + option)
        for g in range(2):
            assert result.reward_GxN[g, i] == pytest.approx(reference.reward(MODEL, params[g], tokens), abs=2e-5)


def test_a_prefix_is_part_of_every_context(params, tokenizer):
    """The same tokens, once as a prefix and once in front of each context."""
    rng = np.random.default_rng(0)
    items = [(rng.integers(2, 270, 5), [rng.integers(2, 270, n) for n in (3, 1)]) for _ in range(6)]
    start = rng.integers(2, 270, 40)
    scorer = scorer_of(params)
    after = score_branches(scorer, items, ("logp", "reward"), compute_prefix(scorer, start))
    whole = score_branches(scorer, [(np.append(start, c), o) for c, o in items], ("logp", "reward"))
    np.testing.assert_allclose(after.logp_GxN, whole.logp_GxN, atol=1e-4)
    np.testing.assert_allclose(after.reward_GxN, whole.reward_GxN, atol=1e-4)
    assert after.n_tokens_N.tolist() == whole.n_tokens_N.tolist() == [3, 1] * 6


def test_an_item_that_cannot_be_scored_is_an_error_and_not_a_zero(params, tokenizer):
    """And changes nothing about those around it."""
    scorer = scorer_of(params)
    broken = [
        choice("empty option", "one", ["", " two"]),
        choice("no options", "one", []),
        choice("label", "one", [" two"], 1),
        choice("surrogate", "one", [" \udc80", " two"]),
        choice("long", "one" + " one" * 59, [" two", " three"]),
        choice("long option", "one", [" two" * 70, " three"]),
    ]
    mixed = [item for pair in zip(ITEMS, broken, strict=False) for item in pair] + broken[len(ITEMS) :]
    results = {result.item.id: result for result in score_options(scorer, tokenizer, mixed)}
    assert len(results) == len(mixed)
    n_context, n_option = (len(tokenizer.encode(text)) for text in ("one" + " one" * 59, " two" * 70))
    assert n_context > LENGTH and n_option > LENGTH
    too_long = "{} tokens, and the model's context has 96"
    assert {name: results[name].error for name in (item.id for item in broken)} == {
        "empty option": "option 0 is empty",
        "no options": "label 0 of 0 options",
        "label": "label 1 of 1 options",
        "surrogate": "option 0 is no Unicode text: surrogates not allowed at 1",
        "long": too_long.format(n_context + max(len(tokenizer.encode(text)) for text in (" two", " three"))),
        "long option": too_long.format(len(tokenizer.encode("one")) + n_option),
    }
    for item, alone in zip(ITEMS, score_options(scorer, tokenizer, ITEMS), strict=True):
        np.testing.assert_allclose(results[item.id].logp_GxN, alone.logp_GxN, atol=1e-5)
    records = results["long"].records(SEEDS, task="t")
    assert records == [
        {"task": "t", "item_id": "long", "group_id": "group of long", "category": "", "seed": seed,
         "error": results["long"].error}
        for seed in SEEDS
    ]  # fmt: skip
    assert all(result.error for result in score_options(scorer, tokenizer, broken))


def test_truncation_takes_the_context_from_the_left_and_says_so(params, tokenizer):
    scorer, prefix_tokens = scorer_of(params), tokenizer.encode("the first words\n")
    items = [
        choice("long", "one " * 60, [" two", " three two"]),
        choice("long option", "one", [" two" * 80, " three"]),
        ITEMS[0],
    ]
    prefix = compute_prefix(scorer, prefix_tokens)
    long, long_option, short = score_options(scorer, tokenizer, items, prefix, too_long="truncate")
    options = [tokenizer.encode(" " + option) for option in items[0].options]
    kept = LENGTH - len(prefix_tokens) - len(options[1])
    context = tokenizer.encode(items[0].context.rstrip(" "))
    assert (long.truncated, short.truncated) == (len(context) - kept, 0) and long.truncated > 20
    for g in range(2):
        for i, option in enumerate(options):
            expected = logp(params[g], np.concatenate([prefix_tokens, context[-kept:]]), option)
            assert long.logp_GxN[g, i] == pytest.approx(expected, abs=2e-4)
    assert long.records(SEEDS)[0]["truncated"] == long.truncated
    assert "and the model's context has 96" in long_option.error


def test_broken_parameters_are_errors_of_the_items(params, tokenizer):
    broken = jax.tree.map(np.array, params[1])
    broken["lm_head"]["kernel"][0, 0] = np.inf
    results = score_options(scorer_of([params[0], broken]), tokenizer, ITEMS)
    assert {result.error for result in results} == {"a score is not finite: broken parameters"}


def test_a_tokenizer_that_lacks_a_character(params):
    """Not a byte-level one: what it doesn't know vanishes."""
    import tokenizers

    vocabulary = {"<|endofcontext|>": 0, "<|pad|>": 1, "o": 2, "n": 3, "e": 4, " ": 5}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    bpe.add_special_tokens(["<|endofcontext|>", "<|pad|>"])
    bpe.decoder = tokenizers.decoders.Fuse()
    lacking = Tokenizer(bpe)
    items = [choice("fine", "one", [" one", " no"]), choice("lacks", "one", [" one", " nö"])]
    fine, lacks = score_options(scorer_of(params), lacking, items)
    assert fine.error == "" and lacks.error == "the tokenizer loses 'ö' of option 1"


def test_right_options_by_hand():
    """Two seeds; the right one is option 1. Ties are shared."""
    result = scoring.ItemScores(
        choice("x", "", ["a", "b", "c"], 1), n_tokens_N=np.array([1, 4, 2]), n_bytes_N=np.array([1, 1, 1]),
        logp_GxN=np.array([[-2.0, -4.0, -2.0], [-1.0, -4.0, -2.0]]),
        unconditional={"bare": np.array([[-2.0, -6.0, -9.0], [-3.0, -6.0, -4.0]])},
        reward_GxN=np.array([[1.0, 1.0, 1.0], [0.0, 2.0, -1.0]]),
    )  # fmt: skip
    assert result.right("sum").tolist() == [0.0, 0.0]
    assert result.right("mean").tolist() == [0.5, 1 / 3]  # -2 -1 -1 and -1 -1 -1
    assert result.right("mi:bare").tolist() == [0.0, 1 / 3]  # 0 2 7 and 2 2 2
    assert result.right("reward").tolist() == [1 / 3, 1.0]
    assert result.records((3, 8), task="t")[4] == {
        "task": "t", "item_id": "x", "group_id": "group of x", "category": "", "seed": 8, "option": 1, "n_tokens": 4,
        "n_bytes": 1, "truncated": 0, "logp_sum": -4.0, "logp_unconditional": {"bare": -6.0}, "reward": 2.0, "label": 1,
    }  # fmt: skip


def test_texts_have_places_in_the_models_positions(params, tokenizer):
    learned = tiny(vocab_size=270, n_layer=1, positions="learned")
    stacked = jax.tree.map(lambda x: x[None], random_params(learned))
    scorer = Scorer(learned, stacked, 1, make_mesh(), 2, 33, 1)
    with pytest.raises(UserError, match="texts of 33 tokens: the model has learned positions of 32"):
        score_options(scorer, tokenizer, ITEMS)
    with pytest.raises(UserError, match="leaves no room in a context of 32"):
        compute_prefix(scorer._replace(length=32), np.arange(32, dtype=np.int32))
    assert not score_options(scorer._replace(length=32), tokenizer, ITEMS[:1])[0].error
    assert NO_PREFIX.cache == ()


def test_a_finished_run_is_scored_under_all_its_seeds(pretrained):
    scorer, tokenizer, seeds = scoring.load_scorer(str(pretrained))
    items = [choice("animal", "the red", [" fox", " qzx"])]
    both = score_options(scorer, tokenizer, items)[0]
    assert seeds == (0, 1) and both.logp_GxN.shape == (2, 2) and both.right("mean").tolist() == [1.0, 1.0]
    one, _, seeds = scoring.load_scorer(str(pretrained), seeds=[1])
    alone = score_options(one, tokenizer, items)[0]
    assert seeds == (1,)
    np.testing.assert_allclose(alone.logp_GxN[0], both.logp_GxN[1], atol=1e-5)
    with pytest.raises(UserError, match="--seed=7"):
        scoring.load_scorer(str(pretrained), seeds=[7])
