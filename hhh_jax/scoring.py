"""The one place that scores text: log-probabilities and rewards of options after their contexts, each option once.

Options of one context are branches that share it in a packed row, and all rows can share a prefix (a prompt), whose
keys and values are computed once. `score_options` gives the records of multiple-choice items with every score that the
paper chooses by; `evaluate.score_pairs` and `score_documents` score what runs are validated and tested on.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from hhh_jax import attention, distributed, sharding
from hhh_jax.cache import Cache, KeyValues
from hhh_jax.data.loader import document_batches
from hhh_jax.data.options import option_batches
from hhh_jax.data.packing import Batch, branched_tokens
from hhh_jax.data.records import MultipleChoice
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.model import ModelConfig, Params, check_length, hidden_states, hidden_states_after, rewards
from hhh_jax.objectives import Outputs
from hhh_jax.storage import open_path
from hhh_jax.train import over_seeds


class Scorer(NamedTuple):
    """A model of ``G`` seeds on its mesh, and the shape of evaluation batches.

    Attributes:
      model, params: the model and its parameters ``[G, ...]``, with a ``score_head`` if it has rewards.
      n_seeds: ``G``.
      mesh: where it runs.
      rows, length: of a batch, `rows` rounded up to what the mesh divides; `length` tokens are the model's context.
      pad_id: what fills rows.
      end_of_context: whether rewards are read at that token, after an option; if not, at the option's last one.
      reference, beta: of implicit rewards, the parameters ``[G, ...]`` that DPO started from and its factor; None of
        other models.
    """

    model: ModelConfig
    params: Params
    n_seeds: int
    mesh: Mesh
    rows: int
    length: int
    pad_id: int
    end_of_context: bool = True
    reference: Params | None = None
    beta: float = 0.1

    def padded_rows(self) -> int:
        """`rows`, rounded up."""
        multiple = sharding.row_multiple(self.mesh)
        return -(-self.rows // multiple) * multiple

    def place(self, batch: Any) -> Any:
        """A batch that all processes have, its rows divided among the devices."""
        rows = sharding.batch_sharding(self.mesh).spec[1]
        return distributed.place(batch, NamedSharding(self.mesh, sharding.P(rows)))

    def of_seed(self, index: int) -> "Scorer":
        """The same with one of its seeds, by its place among them."""
        return self.of_seeds([index])

    def of_seeds(self, indices: Sequence[int]) -> "Scorer":
        """The same with some of its seeds, by their places."""
        chosen = np.array(indices)
        params, reference = jax.tree.map(lambda x: x[chosen], (self.params, self.reference))
        return self._replace(params=params, reference=reference, n_seeds=len(indices))


def load_scorer(
    checkpoint: str, seeds: Sequence[int] = (), selection: str = "best", context: int = 0
) -> tuple[Scorer, Tokenizer, tuple[int, ...]]:
    """A finished run's model, ready to score, its tokenizer, and the seeds in their order.

    Args:
      checkpoint: directory of the run.
      seeds: some of the run's; all of them if none is given.
      selection: ``best`` takes the parameters chosen on validation where the run has them, ``final`` the last ones.
      context: the model's context in tokens; 0 takes the length of the rows that the run trained on.

    Raises UserError for a directory that is no run's, a seed that it doesn't have, or a context without positions.
    """
    from hhh_jax import run

    workdir = open_path(checkpoint)
    c, tokenizer = run.load_config(workdir)
    there, chosen = tuple(c.seeds), tuple(seeds) or tuple(c.seeds)
    for seed in chosen:
        if seed not in there:
            raise UserError(f"--seed={seed}: {checkpoint} has seeds {', '.join(map(str, there))}")
    mesh = sharding.make_mesh(**c.mesh)
    step_config = run.make_step_config(c, tokenizer.vocab_size, mesh)
    state = run.load_state(workdir, step_config)
    params = state["best"]["params"] if selection == "best" and "best" in state else state["params"]
    length = context or c.data.row_length
    check_length(step_config.model, length)
    shape = c.eval.rows, length, tokenizer.pad_id, c.data.end_of_context
    scorer = Scorer(step_config.model, params, len(there), mesh, *shape, state.get("reference"), c.objective.beta)
    return (scorer if chosen == there else scorer.of_seeds(list(map(there.index, chosen)))), tokenizer, chosen


class Prefix(NamedTuple):
    """A text in front of every context, computed once: all of it but the last token.

    That token begins every context instead, because it has as many next tokens as there are contexts.

    Attributes:
      tokens: int32 ``[P]``, all of them.
      cache: keys and values ``[G, ...]`` of the first ``P - 1``; empty if there are none.
    """

    tokens: np.ndarray
    cache: Cache

    @property
    def last(self) -> np.ndarray:
        return self.tokens[-1:]


NO_PREFIX = Prefix(np.zeros(0, np.int32), ())


def bucket(n_tokens: int) -> int:
    """The length, one of few, that is compiled for `n_tokens`: 16, 32, 64, or a multiple of 128."""
    return next((size for size in (16, 32, 64) if n_tokens <= size), -(-n_tokens // 128) * 128)


def compute_prefix(scorer: Scorer, tokens_P: np.ndarray) -> Prefix:
    """Runs the model over a prefix, which may be empty, under every seed.

    Raises UserError if it leaves no room in the model's context.
    """
    n = len(tokens_P)
    if n >= scorer.length:
        raise UserError(
            f"a prefix (prompt and examples) of {n} tokens leaves no room in a context of {scorer.length} tokens; use "
            "a model with a longer one"
        )
    check_length(scorer.model, scorer.length)
    if n < 2:
        return Prefix(tokens_P, ())
    tokens_S = np.full(bucket(n - 1), scorer.pad_id, np.int32)
    tokens_S[: n - 1] = tokens_P[:-1]
    run = _compiled_prefix(scorer.model, scorer.n_seeds, scorer.mesh)
    return Prefix(tokens_P, (run(scorer.params, tokens_S, n - 1),))


@functools.lru_cache(maxsize=32)
def _compiled_prefix(model: ModelConfig, n_seeds: int, mesh: Mesh) -> Callable[[Params, Any, int], KeyValues]:
    def prefix(tokens_S: jax.Array, n: jax.Array, params: Params) -> KeyValues:
        # A row for each device that takes other rows: none has to send what it needs to another.
        tokens_RxS = jnp.broadcast_to(tokens_S, (sharding.row_multiple(mesh), len(tokens_S)))
        positions_RxS = jnp.broadcast_to(jnp.arange(len(tokens_S)), tokens_RxS.shape)
        layout = (positions_RxS < n).astype(jnp.int32), jnp.zeros_like(positions_RxS), positions_RxS
        _, cache = hidden_states_after(model, params, (), tokens_RxS, *layout, mesh)
        return KeyValues(cache.keys[:, :1], cache.values[:, :1], cache.real[:1])

    def for_all(params: Params, tokens_S: jax.Array, n: jax.Array) -> KeyValues:
        return over_seeds(functools.partial(prefix, tokens_S, n), n_seeds)(params)

    return jax.jit(for_all)


@functools.lru_cache(maxsize=32)
def compiled_forward(model: ModelConfig, n_seeds: int, mesh: Mesh, want: tuple[str, ...]) -> Callable:
    """The one program that scores: what `want` names of ``logp`` (of each token's target) and ``reward`` (at each
    token), float32 ``[G, R, T]`` each and None otherwise, of ``(params [G, ...], cache [G, ...], batch [R, ...])``."""

    def forward(batch: Batch, params: Params, cache: Cache) -> tuple[jax.Array | None, jax.Array | None]:
        layout = batch.tokens, batch.segment_ids, batch.branch_ids
        n_before = sum(block.real.sum(dtype=np.int32) for block in cache)
        if cache:
            hidden_RxTxD, _ = hidden_states_after(model, params, cache, *layout, batch.positions + n_before, mesh)
        else:
            hidden_RxTxD = hidden_states(model, params, *layout, batch.positions, mesh)
        logps = Outputs(params, hidden_RxTxD, batch, mesh).target_logps() if "logp" in want else None
        return logps, rewards(params, hidden_RxTxD) if "reward" in want else None

    def for_all(params: Params, cache: Cache, batch: Batch) -> tuple[jax.Array | None, jax.Array | None]:
        return over_seeds(functools.partial(forward, batch), n_seeds)(params, cache)

    return jax.jit(for_all, out_shardings=sharding.replicated(mesh))


def batch_rows(scorer: Scorer, length: int, n_tokens: int) -> int:
    """Rows of `length` tokens of a batch, one of few numbers: about as many tokens as in one of the scorer's own shape,
    or fewer where `n_tokens` are all there is to score."""
    most = max(scorer.rows * scorer.length // length, 1)
    needed = min(most, n_tokens * 17 // 16 // length + 1)  # rows don't come out even
    rows = next(size for k in range(31) for size in (2**k, 3 * 2**k // 2) if size >= needed)
    multiple = sharding.row_multiple(scorer.mesh)
    return -(-min(rows, most) // multiple) * multiple


class BranchScores(NamedTuple):
    """Scores of ``N`` options, those of all items in order, under ``G`` seeds.

    Attributes:
      logp_GxN: summed log-probability in nats of the option's tokens, float64; None if not asked.
      n_tokens_N: number of these tokens: all, but without a context all but the first.
      reward_GxN: the score head's value at the option's last token; None if not asked.
    """

    logp_GxN: np.ndarray | None
    n_tokens_N: np.ndarray
    reward_GxN: np.ndarray | None


def score_branches(
    scorer: Scorer,
    items: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]],
    want: tuple[str, ...],
    prefix: Prefix = NO_PREFIX,
    length: int | None = None,
    rows: int | None = None,
) -> BranchScores:
    """Scores every option of every item once, after the prefix and its context.

    Args:
      items: token ids of a context and of the options after it.
      want: ``logp``, ``reward`` or both.
      length: tokens of a row; the scorer's if not given.
      rows: of a batch; `batch_rows` if not given.

    Raises ValueError for a context and option that a row doesn't hold. A score can be not finite.
    """
    length = length or scorer.length
    check_length(scorer.model, scorer.length)
    joined = [(np.concatenate([prefix.last, context]), options) for context, options in items]
    n_options = sum(len(options) for _, options in items)
    logp_GxN = np.zeros((scorer.n_seeds, n_options)) if "logp" in want else None
    reward_GxN = np.full((scorer.n_seeds, n_options), np.nan) if "reward" in want else None
    n_tokens_N = np.zeros(n_options, np.int64)
    forward = compiled_forward(scorer.model, scorer.n_seeds, scorer.mesh, want)
    if rows is None:
        sizes = [branched_tokens(len(context), map(len, options)) for context, options in joined]
        rows = batch_rows(scorer, length, sum(sizes))
    for batch, placement in option_batches(joined, length, scorer.pad_id, rows):
        logps_GxRxT, rewards_GxRxT = jax.tree.map(np.asarray, forward(scorer.params, prefix.cache, scorer.place(batch)))
        scored_RxT, ends_RxT = placement.option_RxT >= 0, placement.end_RxT >= 0
        option_M = placement.option_RxT[scored_RxT]
        n_tokens_N += np.bincount(option_M, minlength=n_options)
        if logp_GxN is not None:
            for seed, logps_RxT in enumerate(logps_GxRxT):
                logp_GxN[seed] += np.bincount(option_M, logps_RxT[scored_RxT].astype(np.float64), n_options)
        if reward_GxN is not None:
            reward_GxN[:, placement.end_RxT[ends_RxT]] = rewards_GxRxT[:, ends_RxT]
    return BranchScores(logp_GxN, n_tokens_N, reward_GxN)


def score_documents(scorer: Scorer, documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probability in nats, float64 ``[G, D]``, and number of predicted tokens ``[D]`` of each document.

    Raises UserError for a sum that is not finite.
    """
    logp_GxD, n_D = np.zeros((scorer.n_seeds, len(documents))), np.zeros(len(documents), np.int64)
    forward = compiled_forward(scorer.model, scorer.n_seeds, scorer.mesh, ("logp",))
    for batch, placement in document_batches(documents, scorer.length, scorer.pad_id, scorer.padded_rows()):
        logps_GxRxT, _ = forward(scorer.params, (), scorer.place(batch))
        document_N = placement.option_RxT.reshape(-1)
        scored_N = document_N >= 0
        n_D += np.bincount(document_N[scored_N], minlength=len(documents))
        for seed, logps_RxT in enumerate(np.asarray(logps_GxRxT)):
            values = logps_RxT.reshape(-1)[scored_N].astype(np.float64)
            logp_GxD[seed] += np.bincount(document_N[scored_N], values, len(documents))
    check_finite("log-probability", logp_GxD, range(len(documents)))
    return logp_GxD, n_D


def check_finite(what: str, scores_GxN: np.ndarray, items: Sequence[object]) -> None:
    """Raises UserError that names the first of the `items` ``[N]`` with a score ``[G, N, ...]`` that is not finite."""
    broken = np.argwhere(~np.isfinite(scores_GxN))
    if len(broken):
        seed, item = broken[0][:2]
        raise UserError(f"{what} of item {items[item]} is not finite under seed number {seed}: broken parameters")


@dataclasses.dataclass
class ItemScores:
    """Scores of the ``N`` options of one item under ``G`` seeds, or why there are none.

    Attributes:
      item: what was scored.
      error: why it could not be, and then there are no scores; empty if it could.
      truncated: tokens cut from the left of its context.
      n_tokens_N, n_bytes_N: of each option.
      logp_GxN: summed log-probability in nats of each option's tokens after the context, float64.
      unconditional: the same after each context of P(a), by name.
      reward_GxN: the score head's value at an end-of-context token after the option, or at the option's last token if
        the scorer's model was trained so; None if not asked.
    """

    item: MultipleChoice
    error: str = ""
    truncated: int = 0
    n_tokens_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    n_bytes_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    logp_GxN: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    unconditional: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    reward_GxN: np.ndarray | None = None

    def by(self, metric: str) -> np.ndarray:
        """What to choose by, ``[G, N]``: ``sum`` or ``mean`` (a token) of log-probabilities, ``mi:NAME``, the empirical
        mutual information log P(a|q) - log P(a) with P(a) after the context of that name, or ``reward``."""
        if metric == "reward":
            assert self.reward_GxN is not None
            return self.reward_GxN
        kind, _, name = metric.partition(":")
        return {
            "sum": lambda: self.logp_GxN,
            "mean": lambda: self.logp_GxN / self.n_tokens_N,
            "mi": lambda: self.logp_GxN - self.unconditional[name],
        }[kind]()

    def right(self, metric: str) -> np.ndarray:
        """1 where the right option is the best under a seed, a share where others are as good, float ``[G]``."""
        scores_GxN = self.by(metric)
        best_GxN = scores_GxN == scores_GxN.max(1, keepdims=True)
        return best_GxN[:, self.item.label] / best_GxN.sum(1)

    def records(self, seeds: Sequence[int], **where: str) -> list[dict[str, Any]]:
        """One record for each seed and option, as in items.jsonl, or one for each seed with the error."""
        about = where | {"item_id": self.item.id, "group_id": self.item.group, "category": self.item.category}
        if self.error:
            return [about | {"seed": seed, "error": self.error} for seed in seeds]
        return [
            about | {
                "seed": seed, "option": option, "n_tokens": int(self.n_tokens_N[option]),
                "n_bytes": int(self.n_bytes_N[option]), "truncated": self.truncated,
                "logp_sum": float(self.logp_GxN[g, option]),
                "logp_unconditional": {name: float(logp[g, option]) for name, logp in self.unconditional.items()},
                "reward": None if self.reward_GxN is None else float(self.reward_GxN[g, option]),
                "label": int(option == self.item.label),
            }
            for g, seed in enumerate(seeds) for option in range(len(self.item.options))
        ]  # fmt: skip


class _Tokens(NamedTuple):
    """An item in tokens; ``first`` is the number of its first option among those of all items that can be scored."""

    context: np.ndarray
    options: list[np.ndarray]
    first: int


def score_options(
    scorer: Scorer,
    tokenizer: Tokenizer,
    items: Sequence[MultipleChoice],
    prefix: Prefix = NO_PREFIX,
    unconditional: Mapping[str, str | None] | None = None,
    with_reward: bool = False,
    too_long: str = "error",
) -> list[ItemScores]:
    """Scores every option of every item, each item once and in order.

    Context and option are tokenized apart. Spaces at the end of a context are given to its options, because byte-level
    tokens begin with the space before a word. Without prefix and context, options follow the document delimiter.

    Args:
      prefix: what stands in front of every context.
      unconditional: contexts of P(a) by name; None is the document delimiter alone, without the prefix, and a text is a
        context as any other, after the prefix.
      with_reward: whether to score by the score head as well.
      too_long: what becomes of an item that the model's context doesn't hold: ``error``, or ``truncate``, which cuts
        its context from the left and says so in `ItemScores.truncated`.
    """
    results = [ItemScores(item) for item in items]
    delimiter = np.array([tokenizer.eoc_id], np.int32)
    start = prefix.tokens[:0] if len(prefix.tokens) else delimiter  # of contexts without a token
    room = scorer.length - len(prefix.tokens)
    scored: list[tuple[ItemScores, _Tokens]] = []
    n_options = 0
    for result in results:
        try:
            context, options = _tokenize(tokenizer, result.item)
            if not len(context):
                context = start
            longest = max(map(len, options)) + with_reward
            cut = len(context) + longest - room
            if cut > 0 and (too_long == "error" or longest + len(start) > room):
                needed = len(prefix.tokens) + len(context) + longest
                raise CannotScoreError(f"{needed} tokens, and the model's context has {scorer.length}")
        except CannotScoreError as error:
            result.error = str(error)
            continue
        result.truncated = max(cut, 0)
        result.n_bytes_N = np.array([len(option.encode()) for option in result.item.options])
        scored.append((result, _Tokens(context[result.truncated :], options, n_options)))
        n_options += len(options)

    def score(contexts: Sequence[np.ndarray], want: str, prefix: Prefix, end: np.ndarray) -> BranchScores:
        """All options after these contexts, an `end` behind each, in rows that hold a whole item where there can be."""
        pieces = [
            (context, [np.concatenate([option, end]) for option in tokens.options])
            for context, (_, tokens) in zip(contexts, scored, strict=True)
        ]
        wholes = [len(prefix.last) + branched_tokens(len(c), map(len, options)) for c, options in pieces]
        branches = [len(prefix.last) + len(c) + max(map(len, options)) for c, options in pieces]
        length = bucket(max(*branches, min(max(wholes), scorer.length, attention.MASKED_TOKENS)))
        return score_branches(scorer, pieces, (want,), prefix, length)

    if not scored:
        return results
    nothing = delimiter[:0]
    own = [tokens.context for _, tokens in scored]
    after_context = score(own, "logp", prefix, nothing)
    after = {}
    for name, text in (unconditional or {}).items():
        context = delimiter if text is None else tokenizer.encode(text.rstrip(" "))
        after[name] = score([context] * len(scored), "logp", NO_PREFIX if text is None else prefix, nothing).logp_GxN
    end = delimiter if scorer.end_of_context else nothing
    by_head = score(own, "reward", prefix, end).reward_GxN if with_reward else None
    for result, tokens in scored:
        span = slice(tokens.first, tokens.first + len(tokens.options))
        assert after_context.logp_GxN is not None
        result.n_tokens_N, result.logp_GxN = after_context.n_tokens_N[span], after_context.logp_GxN[:, span]
        result.unconditional = {name: logp_GxN[:, span] for name, logp_GxN in after.items() if logp_GxN is not None}
        result.reward_GxN = None if by_head is None else by_head[:, span]
        values = [result.logp_GxN, *result.unconditional.values(), *([] if by_head is None else [by_head[:, span]])]
        if not all(np.isfinite(values_GxN).all() for values_GxN in values):
            result.error = "a score is not finite: broken parameters"
    return results


class CannotScoreError(Exception):
    """Why an item has no scores."""


def encode_whole(tokenizer: Tokenizer, text: str, where: str) -> np.ndarray:
    """The ids of a text, int32 [T]. Raises CannotScoreError, by the name `where`, if they are not all of it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CannotScoreError(f"{where} is no Unicode text: {error.reason} at {error.start}") from error
    tokens = tokenizer.encode(text)
    back = tokenizer.decode(tokens)
    if back != text:
        at = next((j for j, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
        raise CannotScoreError(f"the tokenizer loses {text[at : at + 1]!r} of {where}")
    return tokens


def _tokenize(tokenizer: Tokenizer, item: MultipleChoice) -> tuple[np.ndarray, list[np.ndarray]]:
    if not item.options or not 0 <= item.label < len(item.options):
        raise CannotScoreError(f"label {item.label} of {len(item.options)} options")
    context = item.context.rstrip(" ")
    texts = [context, *(item.context[len(context) :] + option for option in item.options)]
    tokens = []
    for i, text in enumerate(texts):
        where = "the context" if i == 0 else f"option {i - 1}"
        tokens.append(encode_whole(tokenizer, text, where))
        if i > 0 and not len(tokens[-1]):
            raise CannotScoreError(f"{where} is empty")
    return tokens[0], tokens[1:]
