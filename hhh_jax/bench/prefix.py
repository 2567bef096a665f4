"""Questions behind one long prompt: scored and sampled with the prompt computed once, against computing it for each.

The 98k rung reads 64 questions of 25 tokens behind a prompt of 6000: two options of 5 tokens each are scored, or 16
tokens sampled. The side with the cache computes the prompt anew in every round. The other one keeps keys and values
of each text but shares none; it does 4 of the questions, and its time is multiplied by 16. The unit is seconds, and
the ratio how many times longer recomputing takes.
"""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from hhh_jax.bench.harness.timing import Measures, Row, compare, interleave
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.model import CPU_LADDER, ModelConfig, init_params
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import Scorer, compute_prefix, score_branches
from hhh_jax.sharding import make_mesh

RUNG, PROMPT, QUESTIONS, QUESTION, OPTION, NEW, ROUNDS = "98k", 6000, 64, 25, 5, 16, 3
SHARE = 16  # one in so many questions is recomputed


def rows(quick: bool) -> Iterator[Row]:
    """One row for scoring and one for sampling."""
    n_layer, size, vocab_size = (1, 100, 300) if quick else (CPU_LADDER[RUNG], PROMPT, 1024)
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer(["".join(rng.choice([*"aeiou bdg"], 30000))], vocab_size)
    model = ModelConfig(n_layer, 32, 32, vocab_size, dtype="float32", unroll=n_layer)
    drawn = jax.jit(init_params, static_argnums=(0, 2))(model, jax.random.key(0), False)
    params = jax.tree.map(lambda x: x[None], drawn)
    scorer = Scorer(model, params, 1, make_mesh(), QUESTIONS // SHARE, size + QUESTION + NEW, tokenizer.pad_id)

    def ids(n: int) -> np.ndarray:
        return rng.integers(2, vocab_size, n).astype(np.int32)

    prompt, questions = ids(size), [ids(QUESTION) for _ in range(QUESTIONS)]
    options = [[ids(OPTION), ids(OPTION)] for _ in questions]
    few, decoding = slice(QUESTIONS // SHARE), Decoding(max_new_tokens=NEW)

    def score_after_cache() -> None:
        items = list(zip(questions, options, strict=True))
        score_branches(scorer, items, ("logp",), compute_prefix(scorer, prompt), 128)

    def score_whole_texts() -> None:
        items = [(np.concatenate([prompt, question]), options) for question, options in
                 zip(questions[few], options[few], strict=True)]  # fmt: skip
        score_branches(scorer, items, ("logp",))

    def sample_after_cache() -> None:
        prompts = [Prompt(str(i), question) for i, question in enumerate(questions)]
        sample(scorer._replace(rows=QUESTIONS), tokenizer, prompts, decoding, compute_prefix(scorer, prompt))

    def sample_whole_texts() -> None:
        prompts = [Prompt(str(i), np.concatenate([prompt, question])) for i, question in enumerate(questions[few])]
        sample(scorer, tokenizer, prompts, decoding)

    kinds = {"score": (score_after_cache, score_whole_texts), "sample": (sample_after_cache, sample_whole_texts)}
    for kind, (cached, whole) in kinds.items():
        for run in (cached, whole):
            run()  # compiles
        contenders = {"whole": whole, "cached": cached}
        measures: Measures = {name: functools.partial(_seconds, run) for name, run in contenders.items()}
        seconds = interleave(measures, 1 if quick else ROUNDS)
        recomputed = [SHARE * spent for spent in seconds["whole"]]
        note = f"{RUNG}, prompt of {size} tokens, {QUESTIONS} questions of {QUESTION}"
        yield compare(f"{kind}, recomputed", "s", recomputed, "prompt computed once", seconds["cached"], note)


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
