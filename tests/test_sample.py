"""Samples against running whole texts through the model again, and draws against exact probabilities."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.stats
from reference import random_params, tiny

from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer
from hhh_jax.errors import UserError
from hhh_jax.sample import Decoding, Prompt, Sample, nucleus, sample, sample_texts
from hhh_jax.scoring import NO_PREFIX, Prefix, Scorer, compute_prefix, load_scorer
from hhh_jax.sharding import make_mesh

ROOT = Path(__file__).parents[1]
MODEL = tiny(vocab_size=270, max_positions=64)
LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["one two three four five six seven eight nine ten eleven twelve"] * 3, 270)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """Such that some tokens are much more probable than others."""
    params = random_params(MODEL)
    params["lm_head"]["kernel"] *= 3
    return params


def scorer_of(params: dict, rows: int = 8, length: int = LENGTH) -> Scorer:
    stacked = jax.tree.map(lambda x: x[None], params)
    return Scorer(MODEL, stacked, 1, make_mesh(), rows, length, 1)


def prompts_of(*sizes: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [Prompt(f"prompt {i}", rng.integers(2, 270, size).astype(np.int32)) for i, size in enumerate(sizes)]


def same(a: Sample, b: Sample) -> bool:
    return (a.text, a.finish) == (b.text, b.finish) and (a.tokens == b.tokens).all() and (a.logps == b.logps).all()


@pytest.mark.parametrize("prefix_size", [0, 1, 9])
def test_greedy_samples_and_their_log_probabilities_equal_running_the_whole_text(params, tokenizer, prefix_size):
    """Prompts of several lengths, one of a single token and one of none, after a shared prefix or alone."""
    scorer = scorer_of(params)
    prefix_tokens = np.random.default_rng(1).integers(2, 270, prefix_size).astype(np.int32)
    prefix = compute_prefix(scorer, prefix_tokens)
    prompts = prompts_of(*([0] if prefix_size else []), 1, 2, 5, 16)
    results = sample(scorer, tokenizer, prompts, Decoding(max_new_tokens=6, temperature=0.0), prefix)
    for prompt, (found,) in zip(prompts, results, strict=True):
        text = np.concatenate([prefix_tokens, prompt.tokens])
        assert len(found.tokens) == 6 or found.finish == "end"
        for token, logp in zip(found.tokens, found.logps, strict=True):
            logits_V = reference.logits(MODEL, params, text)[-1]
            expected = logits_V - scipy.special.logsumexp(logits_V)
            assert token == np.argmax(np.where(np.arange(270) == 1, -np.inf, logits_V))  # padding is never sampled
            assert logp == pytest.approx(expected[token], abs=2e-4)
            text = np.append(text, token)
        assert found.text == tokenizer.decode(found.tokens)


def exact(params: dict, text: np.ndarray, temperature: float, top_p: float, never: set[int]) -> np.ndarray:
    """Probability of each next token: by sorting."""
    logits_V = reference.logits(MODEL, params, text)[-1] / temperature
    logits_V[list(never)] = -np.inf
    probs_V = scipy.special.softmax(logits_V)
    order = np.argsort(-probs_V)
    n_kept = int(np.searchsorted(np.cumsum(probs_V[order]), top_p)) + 1
    probs_V[order[n_kept:]] = 0
    return probs_V / probs_V.sum()


@pytest.mark.parametrize("temperature, top_p, forbidden", [(1.0, 1.0, ()), (2.5, 0.8, ("e", "t"))])
def test_draws_have_the_models_probabilities(params, tokenizer, temperature, top_p, forbidden):
    (prompt,) = prompts_of(6)
    decoding = Decoding(
        n=4000, max_new_tokens=2, temperature=temperature, top_p=top_p, forbidden=forbidden, seed=5
    )
    (found,) = sample(scorer_of(params, rows=1000), tokenizer, [prompt], decoding)
    spellings = tokenizer.token_bytes()
    never = {1} | {i for i, spelling in enumerate(spellings) if any(word.encode() in spelling for word in forbidden)}
    first = exact(params, prompt.tokens, temperature, top_p, never)
    counts = np.bincount([each.tokens[0] for each in found], minlength=270)
    assert counts[first == 0].sum() == 0
    # The second token, after the most frequent first one.
    most = int(counts.argmax())
    second = exact(params, np.append(prompt.tokens, most), temperature, top_p, never)
    seconds = np.bincount([each.tokens[1] for each in found if each.tokens[0] == most], minlength=270)
    assert seconds.sum() > 300 and seconds[second == 0].sum() == 0
    for observed, probs in ((counts, first), (seconds, second)):
        expected = probs * observed.sum()
        rare = expected < 5  # together, as the test asks for
        bins = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
        if bins[1][-1] < 5:
            bins = [np.append(x[:-2], x[-2:].sum()) for x in bins]
        assert len(bins[0]) > 5
        assert scipy.stats.chisquare(*bins).pvalue > 1e-3


def test_nucleus_by_hand_and_by_sorting():
    probs = jnp.array([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    assert nucleus(probs, jnp.float32(0.6)).tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert nucleus(probs, jnp.float32(0.1))[0].tolist() == [1, 0, 0, 0]
    assert nucleus(probs, jnp.float32(0.95))[0].tolist() == [1, 1, 1, 1]
    rng = np.random.default_rng(0)
    probs_BxV = rng.dirichlet(np.full(500, 0.05), 20).astype(np.float32)
    kept_BxV = np.asarray(nucleus(jnp.asarray(probs_BxV), jnp.float32(0.9)))
    for probs_V, kept_V in zip(probs_BxV, kept_BxV, strict=True):
        ordered = np.sort(probs_V)[::-1]
        n = int(np.searchsorted(np.cumsum(ordered), 0.9)) + 1
        assert kept_V.sum() == n and probs_V[kept_V].min() == ordered[n - 1]


def test_a_sample_does_not_depend_on_what_else_is_sampled(params, tokenizer):
    decoding = Decoding(n=3, max_new_tokens=12, temperature=1.3, seed=7)
    prompts = prompts_of(4, 16, 7, 3, 19)  # of two compiled lengths
    together = sample(scorer_of(params), tokenizer, prompts, decoding)
    other_order = sample(scorer_of(params), tokenizer, prompts[::-1], decoding)[::-1]
    alone = [sample(scorer_of(params), tokenizer, [prompt], decoding)[0] for prompt in prompts]
    for a, b, c in zip(together, other_order, alone, strict=True):
        assert all(same(x, y) and same(x, z) for x, y, z in zip(a, b, c, strict=True))
    # Another number of rows is another program: equal but for rounding. Other samples of a prompt are others.
    more = sample(scorer_of(params, rows=2), tokenizer, prompts[:4], decoding)
    for a, b in zip(together[:4], more, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.tokens.tolist() == y.tokens.tolist()
            np.testing.assert_allclose(x.logps, y.logps, atol=1e-4)
    texts = [each.text for of_prompt in together for each in of_prompt]
    assert len(set(texts)) == 15
    again = sample(scorer_of(params), tokenizer, prompts[:1], dataclasses.replace(decoding, seed=8))
    assert not same(again[0][0], together[0][0])
    third = sample(scorer_of(params), tokenizer, prompts[:1], decoding, first_sample=2)
    assert third[0][0].tokens.tolist() == together[0][2].tokens.tolist()


def test_stop_and_forbidden_strings(params, tokenizer):
    """Against the same samples without them: they are cut where the string first comes, or never have it."""
    scorer, prompts = scorer_of(params, rows=32), prompts_of(5, 6)
    plain = Decoding(n=100, max_new_tokens=16, temperature=1.0, seed=1)
    free = list(itertools.chain(*sample(scorer, tokenizer, prompts, plain)))
    # Two letters that the model often writes one after the other, in one token or in two.
    pairs = [text[i : i + 2] for text in (each.text for each in free) for i in range(len(text) - 1)]
    often = [pair for pair in sorted(set(pairs), key=pairs.count) if pair.isprintable() and pair.isascii()][-2:]
    stopped = sample(scorer, tokenizer, prompts, Decoding(n=100, max_new_tokens=16, stop=tuple(often), seed=1))
    n_stopped = 0
    for a, b in zip(free, itertools.chain(*stopped), strict=True):
        at = min((a.text.find(pair) for pair in often if pair in a.text), default=-1)
        assert (b.finish == "stop") == (at >= 0)
        assert b.text == (a.text if at < 0 else a.text[:at])
        assert len(b.tokens) <= len(a.tokens) and (a.tokens[: len(b.tokens)] == b.tokens).all()
        n_stopped += at >= 0
    assert 20 < n_stopped < 200
    never = sample(scorer, tokenizer, prompts, Decoding(n=100, max_new_tokens=16, forbidden=tuple(often), seed=1))
    for a, b in zip(free, itertools.chain(*never), strict=True):
        assert not any(pair in tokenizer.decode(b.tokens) for pair in often)
        if not any(pair in a.text for pair in often):
            assert same(a, b)


def test_samples_end(params, tokenizer):
    """By end-of-context, at their own limit, and where the context is full."""
    found = sample(scorer_of(params), tokenizer, prompts_of(5), Decoding(n=40, max_new_tokens=10, temperature=2.0))[0]
    ended = [each for each in found if each.finish == "end"]
    assert 3 < len(ended) < 40
    assert all(each.tokens[-1] == 0 and (each.tokens[:-1] != 0).all() for each in ended)
    assert all(each.text == tokenizer.decode(each.tokens[:-1]) for each in ended)
    assert all(each.finish == "length" and len(each.tokens) == 10 for each in found if each not in ended)
    prompts = prompts_of(3, 16)
    limited = sample(scorer_of(params), tokenizer, prompts, Decoding(max_new_tokens=8), limits=[2, 7])
    assert [len(each.tokens) for (each,) in limited] == [2, 7]
    full = sample(scorer_of(params, length=19), tokenizer, prompts, Decoding(max_new_tokens=8))
    assert [len(each.tokens) for (each,) in full] == [8, 3]


@pytest.mark.slow
def test_eight_devices_score_and_sample_as_one():
    quick = (f"--{flag}={value}" for flag, value in reference.QUICK_TO_COMPILE.items())
    flags = " ".join(["--xla_force_host_platform_device_count=8", *quick])
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "text_on_eight_devices.py"],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    score, logp, same = json.loads(done.stdout)
    assert score < 1e-4 and logp < 1e-5 and same


@pytest.mark.slow
def test_command_line(pretrained, tmp_path):
    """Prompts from a file, and one after a prompt of its own; the same command gives the same samples."""
    prompts, prefix, out = tmp_path / "prompts.jsonl", tmp_path / "prefix.txt", tmp_path / "samples.jsonl"
    prompts.write_text('{"id": "a", "text": "the red fox"}\n{"id": "b", "text": "a blue hen"}\n')
    prefix.write_text("Human: Is it?\n\nAssistant: It is.")
    command = [sys.executable, "-m", "hhh_jax.sample", f"--checkpoint={pretrained}", "--max_new_tokens=6"]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT, check=False)

    done = run(f"--prompts={prompts}", "--n=2", "--temperature=0.5", f"--intervention={prefix}", f"--output={out}")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(record["id"], record["sample"]) for record in records] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert all(record["logp"] < 0 and 1 <= record["n_tokens"] <= 6 for record in records)
    scorer, tokenizer, _ = load_scorer(str(pretrained), [0])
    found = sample_texts(
        scorer._replace(rows=32), tokenizer, {"b": "a blue hen"}, Decoding(n=2, max_new_tokens=6, temperature=0.5),
        str(prefix),
    )  # fmt: skip
    assert [one["text"] for one in found] == [record["text"] for record in records[2:]]
    refused = run()
    assert refused.returncode == 2 and "give either --prompt=TEXT or --prompts=FILE" in refused.stderr


def test_refusals(params, tokenizer):
    scorer = scorer_of(params)
    with pytest.raises(UserError, match="prompt prompt 0: 48 tokens after a prefix of 0 leave no room"):
        sample(scorer, tokenizer, prompts_of(48), Decoding())
    with pytest.raises(UserError, match="prompt prompt 0: it is empty"):
        sample(scorer, tokenizer, prompts_of(0), Decoding())
    with pytest.raises(UserError, match="of 48 tokens leaves no room"):
        compute_prefix(scorer, np.arange(48, dtype=np.int32))
    for wrong in ({"n": 0}, {"top_p": 0.0}, {"temperature": -1.0}, {"max_new_tokens": 0}):
        with pytest.raises(UserError, match="sampling takes"):
            Decoding(**wrong)
    assert Prefix(np.zeros(0, np.int32), ()).last.size == NO_PREFIX.last.size == 0
