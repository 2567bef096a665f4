"""What the per-token discriminator can do (appendix D): tell tokens apart, and rank samples of a language model.

Rows of stage ``discriminator``, pooled over seeds and rows or problems (``seed`` is blank), with these metrics:

    accuracy_at_distance   of the tokens at a distance from the switch (figure 35). 1 is the model's first token and -1
                           the last one before it; ``k`` is the end, near the switch, of a bin: 1, 2, 3-4, 5-8, ...
    accuracy:human, :mixed, :model   of all tokens in the rows of a kind
    after_switch_gain      accuracy in the last bin after the switch less that of the model's first token
    top_accuracy           mean accuracy of the ``k`` best of a problem's samples, no acc@k (figure 34)
    top_accuracy_gain      one ranker less another at ``k`` = a tenth of the samples

Rankers are ``p_human``, the mean of D over the sample's tokens; ``logp``, the language model's own; and ``ensemble``,
the log of eq. D.2, P_ens(t) = D / (1 - D) * P_theta(t) without its normalizer, summed over tokens.

The paper's figure 35 is on training data; both splits are given here, and differences need not be the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hhh_jax import model, scoring, stats, thirds
from hhh_jax import run as run_lib
from hhh_jax.checkpoint import read_extra
from hhh_jax.data import counting, labeled_rows, prepared, records
from hhh_jax.data.labeled_rows import LabeledRows
from hhh_jax.data.options import option_batches
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import Scorer, load_scorer
from hhh_jax.stats import Estimate, Sample
from hhh_jax.storage import open_path
from hhh_jax.version import code_version

TENTH = 10
"""Gains are taken at one in so many samples."""

WORD_TOKENS = 8
"""Most tokens of a sampled word."""


class Problem(NamedTuple):
    """A context, and the word that comes next."""

    id: str
    context: str
    answer: str


class Samples(NamedTuple):
    """The distinct first words that a model said after a problem's context.

    Attributes:
      tokens: of each distinct word, int32 ``[T]``.
      logp_D: their summed log-probability in nats, float64 ``[D]``.
      right_D: whether each is the answer, bool ``[D]``.
      which_N: which of them each sample is, int64 ``[N]``.
    """

    tokens: list[np.ndarray]
    logp_D: np.ndarray
    right_D: np.ndarray
    which_N: np.ndarray


def job(
    directory: Path, *, after: Path | None, study: str, rows: Path, writer: Path, task: str, data: str, problems: int,
    samples: int, shown: int,
) -> None:  # fmt: skip
    """As a run of a study: rows.jsonl of the discriminator `after`.

    Args:
      rows: folder of the rows that it was trained on.
      writer: the language model whose samples are ranked.
      task: ``counting`` or ``lambada``; `data` is the folder of prepared folders of the latter.
      problems, samples: how many problems at most, and samples of each.
      shown: numbers in the context of ``counting``.
    """
    assert after is not None
    discriminator, tokenizer, _ = load_scorer(str(after))
    told = labeled_rows.read_about(rows)
    found: list[dict[str, Any]] = []
    for split in ("train", "test"):
        rows_about = {"task": Path(told["source"]).name, "split": split}
        found += [rows_about | row for row in distance_rows(discriminator, labeled_rows.open_rows(rows, split))]
    lm, lm_tokenizer, _ = load_scorer(str(writer), (), "final")
    if lm_tokenizer.sha != tokenizer.sha:
        raise UserError(f"{writer} and {after} have different tokenizers: one can't judge the other's tokens")
    asked = load_problems(task, data, shown, problems)
    drawn = draw(lm.of_seed(0), tokenizer, asked, samples, discriminator.length)
    human_GxD, odds_GxD = score_words(discriminator, [(tokens, said.tokens) for tokens, said in drawn])
    scoring.check_finite("P(human) of a word", human_GxD, range(human_GxD.shape[1]))
    ranked = ranking_rows(human_GxD, odds_GxD, [said for _, said in drawn])
    found += [{"task": task, "split": "test"} | row for row in ranked]
    c, _ = run_lib.load_config(open_path(after))
    about = {
        "study": study, "run": directory.name, "stage": "discriminator", "ladder": c.ladder,
        "n_layer": c.model.n_layer, "N": model.count_params(discriminator.model)["n"], "objective": "discriminator",
        "init": c.labels.init, "intervention": c.labels.intervention, "curve": "separate", "seed": "",
        "config_sha": read_extra(open_path(after) / "checkpoints")["config_sha"], "code_version": code_version(),
    }  # fmt: skip
    run_lib.write_lines(directory / "rows.jsonl", [about | row for row in found])
    run_lib.write_lines(directory / "items.jsonl", [])


# Figure 35: tokens by their distance from the switch.


def token_logits(scorer: Scorer, labeled: LabeledRows) -> np.ndarray:
    """The logit of "a person wrote this" at every token, float32 ``[G, R, T]``."""
    forward = scoring.compiled_forward(scorer.model, scorer.n_seeds, scorer.mesh, ("reward",))
    rows, parts = scorer.padded_rows(), []
    for first in range(0, len(labeled), rows):
        numbers = range(first, min(first + rows, len(labeled)))
        _, logits_GxRxT = forward(scorer.params, (), scorer.place(labeled.batch(numbers, scorer.pad_id, rows)))
        parts.append(np.asarray(logits_GxRxT)[:, : len(numbers)])
    return np.concatenate(parts, axis=1)


def distances(is_human_RxT: np.ndarray) -> np.ndarray:
    """Places from the switch, int64 ``[R, T]``: 1 at the model's first token, -1 at the one before; never 0."""
    place_RxT = np.arange(is_human_RxT.shape[1]) - thirds.switches(is_human_RxT)[:, None]
    return np.where(place_RxT >= 0, place_RxT + 1, place_RxT)


def bin_start(distance: np.ndarray) -> np.ndarray:
    """The end near the switch of the bin that each distance is in, with its sign: 1, 2, 3 (to 4), 5 (to 8), 9, ..."""
    size = np.abs(distance)
    below = 2 ** np.ceil(np.log2(np.maximum(size, 1))).astype(int) // 2  # the largest of the bin before
    return np.sign(distance) * np.where(size > 1, below + 1, 1)


def distance_rows(scorer: Scorer, labeled: LabeledRows) -> Iterator[dict[str, Any]]:
    """Accuracy at each distance from the switch, in mixed rows, and in each kind of row; intervals are over rows."""
    is_human_RxT = np.concatenate([part["is_human"] for part in labeled.parts])
    logits_GxRxT = token_logits(scorer, labeled)
    scoring.check_finite("a token's logit", logits_GxRxT, range(len(is_human_RxT)))
    right_GxRxT = (logits_GxRxT > 0) == (is_human_RxT > 0)
    yield from accuracy_by_distance(right_GxRxT, is_human_RxT)


def accuracy_by_distance(right_GxRxT: np.ndarray, is_human_RxT: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rows of `distance_rows` from which tokens were told right, bool ``[G, R, T]``."""
    kind_R = thirds.kinds(is_human_RxT)
    for kind, name in enumerate(thirds.KINDS):
        if (kind_R == kind).sum() > 1:
            yield _row(f"accuracy:{name}", stats.estimate([stats.sample(right_GxRxT[:, kind_R == kind].mean(2))]))
    mixed_GxMxT, bin_MxT = right_GxRxT[:, kind_R == thirds.MIXED], bin_start(distances(is_human_RxT))
    bin_MxT = bin_MxT[kind_R == thirds.MIXED]
    by_bin: dict[int, Sample] = {}
    for start in sorted(set(bin_MxT.ravel().tolist())):
        here_MxT = bin_MxT == start
        n_rows = int(here_MxT.any(1).sum())
        if n_rows > 1:
            by_bin[start] = stats.sample((mixed_GxMxT & here_MxT).sum(2), None, here_MxT.sum(1))
            by_bin[start] = by_bin[start]._replace(n_items=n_rows)
            yield _row("accuracy_at_distance", stats.estimate([by_bin[start]])) | {"k": start}
    if (last := max(by_bin, default=0)) > 1:
        gain_GxM = by_bin[last].values - by_bin[1].values  # the same rows: paired
        yield _row("after_switch_gain", stats.estimate([Sample(gain_GxM, by_bin[last].n_items)])) | {"k": last}


# Figure 34: samples by rank.


def load_problems(task: str, data: str, shown: int, most: int) -> list[Problem]:
    """Problems of a task, at most so many. Raises UserError for another task and for data that is not there."""
    if task == "counting":
        firsts = range(1, counting.LARGEST - shown + 1)
        found = [Problem(f"{n}", counting.counted(n, n + shown - 1), str(n + shown)) for n in firsts]
    elif task == "lambada":
        prompts = [p for p in prepared.load(Path(data) / "lambada", "prompts") if isinstance(p, records.Prompt)]
        nice = [prompt for prompt in prompts if prompt.meta.get("format") == "nice"]
        found = [Problem(prompt.id, prompt.text, prompt.meta["target"]) for prompt in nice]
    else:
        raise UserError(f"no task {task!r} with samples to rank; there are counting and lambada")
    at = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[i] for i in at]


def word_length(spellings: Sequence[bytes]) -> int:
    """How many tokens the first word takes: up to the next that doesn't begin with a letter, digit or apostrophe."""
    for n, spelling in enumerate(spellings[1:], start=1):
        if not (spelling[:1].isalnum() or spelling[:1] == b"'" or spelling[:1] >= b"\x80"):
            return n
    return len(spellings)


def draw(
    lm: Scorer, tokenizer: Tokenizer, problems: Sequence[Problem], n: int, length: int
) -> list[tuple[np.ndarray, Samples]]:
    """Of every problem the context's tokens and `n` samples of its next word, at temperature 1.

    Left out are problems that don't fit into `length` tokens with their word.
    """
    spellings = tokenizer.token_bytes()
    room = min(length, lm.length) - WORD_TOKENS
    contexts = tokenizer.encode_batch([problem.context for problem in problems])
    fitting = [(p, tokens) for p, tokens in zip(problems, contexts, strict=True) if 0 < len(tokens) <= room]
    if len(fitting) < 2:
        raise UserError(f"{len(fitting)} of {len(problems)} problems fit into {length} tokens with {WORD_TOKENS} more")
    prompts = [Prompt(problem.id, tokens) for problem, tokens in fitting]
    drawn = sample(lm, tokenizer, prompts, Decoding(n=n, max_new_tokens=WORD_TOKENS))
    found = []
    for (problem, tokens), said in zip(fitting, drawn, strict=True):
        distinct: dict[tuple[int, ...], tuple[int, float, bool]] = {}
        which = []
        for one in said:
            size = word_length([spellings[t] for t in one.tokens])
            word = tuple(one.tokens[:size].tolist())
            text = b"".join(spellings[t] for t in word).decode(errors="replace").strip()
            logp = float(one.logps[:size].sum(dtype=np.float64))
            which.append(distinct.setdefault(word, (len(distinct), logp, text == problem.answer))[0])
        _, logp_D, right_D = zip(*distinct.values(), strict=True)
        words = [np.array(word, np.int32) for word in distinct]
        found.append((tokens, Samples(words, np.array(logp_D), np.array(right_D), np.array(which))))
    return found


def score_words(scorer: Scorer, items: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]]) -> tuple[np.ndarray, ...]:
    """Mean P(human) and summed log-odds of each option's own tokens after its context, float64 ``[G, N]`` each.

    Args:
      items: token ids of a context, and of what stands after it, as `option_batches` takes them.
    """
    n_options = sum(len(options) for _, options in items)
    forward = scoring.compiled_forward(scorer.model, scorer.n_seeds, scorer.mesh, ("reward",))
    human_GxN, odds_GxN = np.zeros((2, scorer.n_seeds, n_options))
    n_tokens_N = np.zeros(n_options)
    for batch, placement in option_batches(items, scorer.length, scorer.pad_id, scorer.padded_rows()):
        _, logits_GxRxT = forward(scorer.params, (), scorer.place(batch))
        own_RxT = np.full_like(placement.option_RxT, -1)
        own_RxT[:, 1:] = placement.option_RxT[:, :-1]  # a token stands right of where it is predicted
        option_M = own_RxT[own_RxT >= 0]
        n_tokens_N += np.bincount(option_M, minlength=n_options)
        for g, logits_RxT in enumerate(np.asarray(logits_GxRxT, np.float64)):
            logits_M = logits_RxT[own_RxT >= 0]
            odds_GxN[g] += np.bincount(option_M, logits_M, n_options)
            human_GxN[g] += np.bincount(option_M, 1 / (1 + np.exp(-logits_M)), n_options)
    return human_GxN / n_tokens_N, odds_GxN


def ensemble(log_odds: np.ndarray, logp: np.ndarray) -> np.ndarray:
    """Eq. D.2 without its normalizer, summed over tokens: the log of the product of D / (1 - D) * P_theta."""
    return log_odds + logp


def top_accuracy(scores_N: np.ndarray, right_N: np.ndarray) -> np.ndarray:
    """The mean accuracy of the 1, 2, ... N best-scored samples, float64 ``[N]``; equal scores share their places."""
    _, tie_N, size = np.unique(-scores_N, return_inverse=True, return_counts=True)
    shared = np.bincount(tie_N, right_N) / size
    return np.cumsum(np.repeat(shared, size)) / np.arange(1, len(scores_N) + 1)


def ranking_rows(human_GxD: np.ndarray, odds_GxD: np.ndarray, drawn: Sequence[Samples]) -> Iterator[dict[str, Any]]:
    """Mean accuracy of the best samples by every ranker, and gains of one over another; intervals are over problems.

    Args:
      human_GxD, odds_GxD: of all distinct words of all problems in order, as `score_words` gives them.
      drawn: the samples of each problem, as many of each.
    """
    sizes = [len(said.tokens) for said in drawn]
    starts = np.cumsum(sizes) - sizes
    rankers: Mapping[str, Callable[[slice, Samples, int], np.ndarray]] = {
        "p_human": lambda here, said, g: human_GxD[g, here],
        "logp": lambda here, said, g: said.logp_D,
        "ensemble": lambda here, said, g: ensemble(odds_GxD[g, here], said.logp_D),
    }
    accuracy = {}
    for name, score in rankers.items():
        tops_GxPxN = [
            [
                top_accuracy(score(slice(start, start + size), said, g)[said.which_N], said.right_D[said.which_N])
                for said, start, size in zip(drawn, starts, sizes, strict=True)
            ]
            for g in range(len(human_GxD) if name != "logp" else 1)
        ]
        accuracy[name] = np.array(tops_GxPxN)
    n = accuracy["logp"].shape[2]
    for name, top_GxPxN in accuracy.items():
        for k in sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n)}):
            yield _row("top_accuracy", stats.estimate([stats.sample(top_GxPxN[..., k - 1])])) | {"k": k, "ranker": name}
    k = max(n // TENTH, 1)
    unranked_1xP = accuracy["logp"][:, :, n - 1]
    at_k = {name: top_GxPxN[:, :, k - 1] for name, top_GxPxN in accuracy.items()} | {"unranked": unranked_1xP}
    for a, b in (("p_human", "unranked"), ("logp", "p_human"), ("ensemble", "logp")):
        gain = stats.paired_difference(at_k[a], at_k[b])
        yield _row("top_accuracy_gain", gain) | {"k": k, "ranker": f"{a}-{b}"}


def _row(metric: str, estimate: Estimate) -> dict[str, Any]:
    found = {name: getattr(estimate, name) for name in ("value", "lo", "hi", "n_items")}
    if "gain" not in metric:  # an accuracy, which few seeds widen beyond
        found |= {"lo": max(0.0, estimate.lo), "hi": min(1.0, estimate.hi)}
    return {"metric": metric, **found}
