"""Scores and greedy text equal those of `transformers` GPT-NeoX on copied weights: on made-up items and real ones.

Where `lm_eval` is installed, the very same items are right as there.
"""

import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import reference
from test_gpt_neox import gpt_neox

from hhh_jax import prompts
from hhh_jax.data.records import MultipleChoice
from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer
from hhh_jax.model import ModelConfig
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import NO_PREFIX, ItemScores, Prefix, Scorer, compute_prefix, score_options
from hhh_jax.sharding import make_mesh

pytestmark = pytest.mark.parity

VOCAB, LENGTH = 400, 1024
FORM = {"residual": "parallel", "rotary_fraction": 0.25, "aspect": 32, "vocab_size": VOCAB}
SHORT_PROMPT = "A person asks, an assistant answers.\n\nHuman: Is ice cold?\n\nAssistant: Yes, it is.\n\n-----"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [prompts.load("hhh").text]
    return train_tokenizer(texts, VOCAB)


@pytest.fixture(scope="module")
def model() -> tuple[ModelConfig, dict[str, Any], Any]:
    config = reference.tiny(**FORM)
    params = reference.random_params(config)
    del params["score_head"]
    return config, params, gpt_neox(config, params)


def scorer_of(model) -> Scorer:
    config, params, _ = model
    return Scorer(config, jax.tree.map(lambda x: x[None], params), 1, make_mesh(), 4, LENGTH, 1)


def their_logps(theirs: Any, context: np.ndarray, options: Sequence[np.ndarray]) -> np.ndarray:
    """Summed log-probability of each option after the context, float64."""
    import torch

    texts = [np.concatenate([context, option]) for option in options]
    ids = torch.ones((len(texts), max(map(len, texts))), dtype=torch.long)  # what follows a text changes nothing in it
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    with torch.no_grad():
        logps = torch.log_softmax(theirs(ids).logits.double(), -1)
    first = len(context)
    return np.array(
        [
            logps[i, first - 1 : len(text) - 1].gather(1, ids[i, first : len(text), None]).sum().item()
            for i, text in enumerate(texts)
        ]
    )


def right(scores_N: Sequence[float], label: int) -> bool:
    return int(np.argmax(scores_N)) == label


def check(model, tokenizer: Tokenizer, items: list[MultipleChoice], prompt: str) -> None:
    """Every sum, and by sum, mean and mutual information the very same items right."""
    _, _, theirs = model
    scorer = scorer_of(model)
    prefix = compute_prefix(scorer, tokenizer.encode(prompt)) if prompt else NO_PREFIX
    results = score_options(scorer, tokenizer, items, prefix, {"bare": None}, too_long="truncate")
    before, n_right = tokenizer.encode(prompt), 0
    for item, result in zip(items, results, strict=True):
        assert not result.error
        context = np.concatenate([before, tokenizer.encode(item.context)[result.truncated :]])
        options = [tokenizer.encode(option) for option in item.options]
        expected = their_logps(theirs, context, options)
        np.testing.assert_allclose(result.logp_GxN[0], expected, rtol=1e-5, atol=2e-4)
        bare = their_logps(theirs, np.zeros(1, np.int32), options)
        np.testing.assert_allclose(result.unconditional["bare"][0], bare, rtol=1e-5, atol=2e-4)
        sizes = np.array([len(option) for option in options])
        by_theirs = {"sum": expected, "mean": expected / sizes, "mi:bare": expected - bare}
        for metric, scores_N in by_theirs.items():
            assert right(scores_N, item.label) == bool(result.right(metric)[0])
            n_right += right(scores_N, item.label)
    assert 0 < n_right < 3 * len(items)  # or the same items being right would say little


def made_up(n: int) -> list[MultipleChoice]:
    rng = np.random.default_rng(0)
    words = prompts.load("short").text.split()
    items = []
    for i in range(n):
        size, options = int(rng.integers(3, 40)), int(rng.integers(2, 14))
        texts = [" " + " ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(options)]
        label = int(rng.integers(options))
        items.append(MultipleChoice(str(i), " ".join(rng.choice(words, size)), tuple(texts), label, ""))
    return items


@pytest.mark.parametrize("prompt", ["", SHORT_PROMPT])
def test_made_up_items(model, tokenizer, prompt):
    check(model, tokenizer, made_up(30), prompt)


def hellaswag(folder: Path) -> list[MultipleChoice]:
    with gzip.open(folder / "hellaswag/hellaswag_val_head5000.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file)) for _ in range(24)]
    return [
        MultipleChoice(str(i), row["ctx"], tuple(f" {ending}" for ending in row["endings"]), int(row["label"]), "")
        for i, row in enumerate(rows)
    ]


def truthfulqa(folder: Path) -> list[MultipleChoice]:
    rows = json.loads((folder / "truthfulqa/mc_task.json").read_text())[:24]
    items = []
    for i, row in enumerate(rows):
        answers = list(row["mc1_targets"].items())
        order = np.random.default_rng(i).permutation(len(answers))
        label = int(np.argmax([answers[j][1] for j in order]))
        options = tuple(f" {answers[j][0]}" for j in order)
        items.append(MultipleChoice(str(i), prompts.as_question(row["question"]), options, label, ""))
    return items


def hhh(folder: Path) -> list[MultipleChoice]:
    items = []
    for category in ("helpful", "harmless"):
        rows = json.loads((folder / f"hhh_alignment/{category}/task.json").read_text())["examples"]
        short = (row for row in rows if max(map(len, row["target_scores"])) < 1000)  # longer ones exceed the context
        for i, row in enumerate(itertools.islice(short, 12)):
            answers = sorted(row["target_scores"].items())
            label = int(np.argmax([score for _, score in answers]))
            options = tuple(f" {answer.strip()}" for answer, _ in answers)
            items.append(MultipleChoice(f"{category} {i}", prompts.as_question(row["input"]), options, label, ""))
    return items


@pytest.mark.real_data(
    "hellaswag/hellaswag_val_head5000.jsonl.gz", "truthfulqa/mc_task.json", "hhh_alignment/helpful/task.json"
)
@pytest.mark.parametrize("prompt", ["", SHORT_PROMPT], ids=["bare", "prompted"])
@pytest.mark.parametrize("read", [hellaswag, truthfulqa, hhh])
def test_real_items(model, tokenizer, real_data, read, prompt):
    check(model, tokenizer, read(real_data), prompt)


@pytest.mark.parametrize("prompt", ["", SHORT_PROMPT], ids=["bare", "prompted"])
def test_greedy_text(model, tokenizer, prompt):
    import torch

    _, _, theirs = model
    scorer, before = scorer_of(model), tokenizer.encode(prompt)
    prefix: Prefix = compute_prefix(scorer, before) if prompt else NO_PREFIX
    asked = [Prompt(item.id, tokenizer.encode(item.context)) for item in made_up(6)]
    samples = sample(scorer, tokenizer, asked, Decoding(max_new_tokens=20, temperature=0), prefix)
    for one, (found,) in zip(asked, samples, strict=True):
        ids = torch.tensor(np.concatenate([before, one.tokens]))[None].long()
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=0,
            pad_token_id=1, suppress_tokens=[1],
        )[0, ids.shape[1] :]  # fmt: skip
        assert found.tokens.tolist() == out.tolist()
        (expected,) = their_logps(theirs, ids[0].numpy(), [found.tokens])
        assert float(found.logps.sum()) == pytest.approx(expected, abs=1e-3)


def test_lm_evaluation_harness_finds_the_same_items_right(model, tokenizer):
    """Its own model class for `transformers`, asked as its multiple-choice tasks ask: context and continuation."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    assert lm_eval
    _, _, theirs = model
    import tokenizers

    bpe = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endofcontext|>", pad_token="<|pad|>")
    harness = HFLM(pretrained=theirs, tokenizer=fast, max_length=LENGTH, batch_size=1)
    items = made_up(30)
    results: list[ItemScores] = score_options(scorer_of(model), tokenizer, items)
    for item, result in zip(items, results, strict=True):
        requests = [
            Instance("loglikelihood", {}, (item.context, option), i) for i, option in enumerate(item.options)
        ]
        found = [logp for logp, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        np.testing.assert_allclose(result.logp_GxN[0], found, rtol=1e-4, atol=1e-3)
        assert right(found, item.label) == bool(result.right("sum")[0])
