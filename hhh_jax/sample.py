"""Sampling from a model: prompts in, continuations out.

    python -m hhh_jax.sample --checkpoint=RUN_DIR --prompt="Once upon a time" [--n=4] [--temperature=0.8]
    python -m hhh_jax.sample --checkpoint=RUN_DIR --prompts=prompts.jsonl [--top_p=0.95] [--stop=END] [--output=FILE]

prompts.jsonl holds {id, text} a line; each sample becomes a line {id, sample, text, finish, n_tokens, logp}. With
--intervention=hhh (or short, or a file) each text is a question in a dialogue that the HHH prompt opens.

A prompt is run through the model once for all of its samples, and what all prompts begin with once for all of them. A
sample's random numbers come from (seed, prompt's id, sample's number), and no row of a batch knows of the others: which
prompts stand beside it changes nothing, bit for bit (float32, CPU). The shape of the compiled program depends on the
prompt's own length, on n and on the number of rows; under another number of rows log-probabilities differ in their last
bits, and tokens where two were that close.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding

from hhh_jax import cli, sharding, strings
from hhh_jax import prompts as prompts_lib
from hhh_jax.cache import Cache, KeyValues
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.model import ModelConfig, Params, check_length, hidden_states_after, lm_logits
from hhh_jax.scoring import NO_PREFIX, Prefix, Scorer, bucket, compute_prefix

P = sharding.P
ROWS = P(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to sample.

    Attributes:
      n: samples of each prompt.
      max_new_tokens: tokens of a sample, end-of-context included.
      temperature: divides the logits; 0 takes the most probable token.
      top_p: samples only from the fewest most probable tokens that have this much probability together, at the given
        temperature and without what is forbidden.
      stop: a sample ends as soon as its text has one of these, and is cut before it.
      forbidden: no sample has one of these: a token that would complete one is never taken.
      seed: of the random numbers.
    """

    n: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.n >= 1 and self.max_new_tokens >= 1 and self.temperature >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"sampling takes n and max_new_tokens of 1 or more, a temperature of 0 or more and a top_p above 0 and "
                f"up to 1, not {self.n}, {self.max_new_tokens}, {self.temperature} and {self.top_p}"
            )


class Prompt(NamedTuple):
    """What to go on from: token ids, of which there may be none after a prefix."""

    id: str
    tokens: np.ndarray


class Sample(NamedTuple):
    """One continuation.

    Attributes:
      text: up to the stop string, if it came to one.
      tokens: all that was sampled, int32 ``[N]``, with the stop string or end-of-context at the end.
      logps: log-probability in nats of each under the model as it is, at temperature 1 and with nothing left out.
      finish: ``end`` (end-of-context), ``stop`` or ``length``.
    """

    text: str
    tokens: np.ndarray
    logps: np.ndarray
    finish: str


def nucleus(probs_BxV: jax.Array, top_p: jax.Array) -> jax.Array:
    """Which tokens are among the fewest most probable ones that hold `top_p` together, bool ``[B, V]``.

    Tokens as probable as the last of them are among them too. Finds the least probability bit by bit, as sorting a
    large vocabulary takes longer: floats that aren't negative are ordered as their bits.
    """
    bits_BxV = jax.lax.bitcast_convert_type(probs_BxV, jnp.int32)

    def set_bit(i: jax.Array, least_B: jax.Array) -> jax.Array:
        higher_B = least_B | (1 << (30 - i))
        held_B = jnp.where(bits_BxV >= higher_B[:, None], probs_BxV, 0.0).sum(-1)
        return jnp.where(held_B >= top_p, higher_B, least_B)

    least_B = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros(len(probs_BxV), jnp.int32))
    return bits_BxV >= least_B[:, None]


class _Rows(NamedTuple):
    """Device inputs of one batch: ``U`` prompts with ``B / U`` samples each.

    Attributes:
      tokens: int32 ``[U, T]``, each prompt but its last token, padding after it.
      n_tokens: int32 ``[U]``, how many these are.
      last: int32 ``[U]``, the last token.
      keys: uint32 ``[B, 2]``, random keys.
      limits: int32 ``[B]``, most tokens to sample.
    """

    tokens: Any
    n_tokens: Any
    last: Any
    keys: Any
    limits: Any


class _Program(NamedTuple):
    """What a compiled sampler depends on besides the shapes of its input."""

    model: ModelConfig
    mesh: Mesh
    max_new_tokens: int
    greedy: bool
    nucleus: bool


class _State(NamedTuple):
    """The loop's: ``N`` the most tokens to sample."""

    step: jax.Array
    token_B: jax.Array
    state_B: jax.Array
    outcome_B: jax.Array
    n_tokens_B: jax.Array
    tokens_BxN: jax.Array
    logps_BxN: jax.Array
    keys_LxBxNxHxK: jax.Array
    values_LxBxNxHxK: jax.Array


@functools.lru_cache(maxsize=64)
def _compiled(program: _Program) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
    """``(params [1, ...], prefix cache [1, ...], rows, table [S, V], temperature, top_p)`` to tokens and
    log-probabilities ``[B, N]``, number of tokens and outcome of the last one ``[B]``."""
    return jax.jit(functools.partial(_decode, program), out_shardings=sharding.replicated(program.mesh))


def _decode(
    program: _Program,
    params_1x: Params,
    prefix_1x: Cache,
    rows: _Rows,
    table_SxV: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    params, prefix = jax.tree.map(lambda x: x[0], (params_1x, prefix_1x))
    model, mesh, most = program.model, program.mesh, program.max_new_tokens
    n_rows, per_prompt = len(rows.limits), len(rows.limits) // len(rows.tokens)
    n_prefix = sum(block.real.sum(dtype=jnp.int32) for block in prefix)
    places_1xT = jnp.arange(rows.tokens.shape[1])[None]
    segments_UxT = (places_1xT < rows.n_tokens[:, None]).astype(jnp.int32)
    positions_UxT = n_prefix + jnp.broadcast_to(places_1xT, rows.tokens.shape)
    layout = segments_UxT, jnp.zeros_like(segments_UxT), positions_UxT
    _, prompts = hidden_states_after(model, params, prefix, rows.tokens, *layout, mesh)
    first_position_B = n_prefix + jnp.repeat(rows.n_tokens, per_prompt)

    def divided(x_LxB: jax.Array) -> jax.Array:
        spec = P(P.UNCONSTRAINED, *ROWS, *[P.UNCONSTRAINED] * (x_LxB.ndim - 2))
        return jax.lax.with_sharding_constraint(x_LxB, NamedSharding(mesh, spec)) if mesh.size > 1 else x_LxB

    def one_more(state: _State) -> _State:
        i, zeros_Bx1 = state.step, jnp.zeros((n_rows, 1), jnp.int32)
        is_filled_BxN = jnp.broadcast_to(jnp.arange(most) < i, (n_rows, most))
        sampled = KeyValues(state.keys_LxBxNxHxK, state.values_LxBxNxHxK, is_filled_BxN)
        layout = zeros_Bx1 + 1, zeros_Bx1, (first_position_B + i)[:, None]
        hidden_Bx1xD, new = hidden_states_after(
            model, params, (*prefix, prompts, sampled), state.token_B[:, None], *layout, mesh
        )
        logits_BxV = lm_logits(params, hidden_Bx1xD[:, 0])
        outcomes_BxV = table_SxV[state.state_B]
        token_B = _choose(program, logits_BxV, outcomes_BxV != strings.FORBIDDEN, rows.keys, i, temperature, top_p)
        of_token = functools.partial(jnp.take_along_axis, indices=token_B[:, None], axis=1)
        logp_B = of_token(logits_BxV)[:, 0] - jax.nn.logsumexp(logits_BxV, axis=-1)
        going_B = (state.outcome_B >= 0) & (i < rows.limits)
        outcome_B = jnp.where(going_B, of_token(outcomes_BxV)[:, 0].astype(jnp.int32), state.outcome_B)
        return _State(
            step=i + 1,
            token_B=token_B,
            state_B=jnp.maximum(outcome_B, 0),
            outcome_B=outcome_B,
            n_tokens_B=state.n_tokens_B + going_B,
            tokens_BxN=jax.lax.dynamic_update_slice(state.tokens_BxN, token_B[:, None], (0, i)),
            logps_BxN=jax.lax.dynamic_update_slice(state.logps_BxN, logp_B[:, None], (0, i)),
            keys_LxBxNxHxK=divided(jax.lax.dynamic_update_slice(state.keys_LxBxNxHxK, new.keys, (0, 0, i, 0, 0))),
            values_LxBxNxHxK=divided(jax.lax.dynamic_update_slice(state.values_LxBxNxHxK, new.values, (0, 0, i, 0, 0))),
        )

    def is_going(state: _State) -> jax.Array:
        return jnp.any((state.outcome_B >= 0) & (state.step < rows.limits))

    zeros_B = jnp.zeros(n_rows, jnp.int32)
    empty = jnp.zeros((model.n_layer, n_rows, most, model.n_head, model.head_dim), model.dtype)
    start = _State(
        step=jnp.int32(0),
        token_B=jnp.repeat(rows.last, per_prompt),
        state_B=zeros_B,
        outcome_B=zeros_B,
        n_tokens_B=zeros_B,
        tokens_BxN=jnp.zeros((n_rows, most), jnp.int32),
        logps_BxN=jnp.zeros((n_rows, most), jnp.float32),
        keys_LxBxNxHxK=divided(empty),
        values_LxBxNxHxK=divided(empty),
    )
    end = jax.lax.while_loop(is_going, one_more, start)
    return end.tokens_BxN, end.logps_BxN, end.n_tokens_B, end.outcome_B


def _choose(
    program: _Program,
    logits_BxV: jax.Array,
    allowed_BxV: jax.Array,
    keys_Bx2: jax.Array,
    step: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """The next token of each row, int32 ``[B]``."""
    logits_BxV = jnp.where(allowed_BxV, logits_BxV, -jnp.inf)
    if program.greedy:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits_BxV = logits_BxV / temperature
    if program.nucleus:
        logits_BxV = jnp.where(nucleus(jax.nn.softmax(logits_BxV, axis=-1), top_p), logits_BxV, -jnp.inf)

    def draw(key_2: jax.Array, logits_V: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), step)
        return jax.random.categorical(key, logits_V)

    return jax.vmap(draw)(keys_Bx2, logits_BxV).astype(jnp.int32)


class _Unit(NamedTuple):
    """Samples ``first`` to ``first + n`` of prompt number ``prompt``, which are sampled in one batch."""

    prompt: int
    first: int
    n: int


def _batches(lengths: Sequence[int], n: int, rows: int, multiple: int) -> Iterator[tuple[list[_Unit], int, int, int]]:
    """All samples, each once: units, and prompts ``U``, samples a prompt and length ``T`` of their batch.

    Prompts of one compiled length stand together; ``U`` and the samples a prompt depend on `n` and `rows` alone.
    """
    parts = -(-n // rows)
    per_prompt = -(-n // parts)
    n_prompts = -(-max(rows // per_prompt, 1) // multiple) * multiple
    for length in sorted({bucket(size) for size in lengths}):
        units = [
            _Unit(prompt, first, min(per_prompt, n - first))
            for prompt, size in enumerate(lengths) if bucket(size) == length
            for first in range(0, n, per_prompt)
        ]  # fmt: skip
        for at in range(0, len(units), n_prompts):
            yield units[at : at + n_prompts], n_prompts, per_prompt, length


def random_key(seed: int, prompt_id: str, sample: int) -> np.ndarray:
    """The random key of one sample, uint32 ``[2]``."""
    digest = hashlib.sha256(json.dumps([seed, prompt_id, sample]).encode()).digest()
    return np.frombuffer(digest[:8], ">u4").astype(np.uint32)


def cannot_sample(scorer: Scorer, prompt: Prompt, prefix: Prefix = NO_PREFIX) -> str:
    """Why nothing can be sampled from a prompt; empty if it can."""
    before, own = len(prefix.tokens), len(prompt.tokens)
    if before + own == 0:
        return "it is empty and there is no prefix: nothing to go on from"
    if before + own >= scorer.length:
        return f"{own} tokens after a prefix of {before} leave no room in the model's context of {scorer.length}"
    return ""


def sample(
    scorer: Scorer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    prefix: Prefix = NO_PREFIX,
    limits: Sequence[int] | None = None,
    first_sample: int = 0,
) -> list[list[Sample]]:
    """Samples every prompt.

    Args:
      scorer: the model, with one seed; its ``rows`` are sampled at once, and a text has at most ``length`` tokens.
      prefix: what stands in front of every prompt.
      limits: most tokens of a sample, for each prompt; the decoding's for all if not given.
      first_sample: the number of each prompt's first sample, which its random numbers come from.

    Returns:
      ``decoding.n`` samples for each prompt, in order.

    Raises:
      UserError: for a prompt that `cannot_sample` objects to.
    """
    if scorer.n_seeds != 1:
        raise ValueError(f"the scorer has {scorer.n_seeds} seeds; sample under one at a time")
    check_length(scorer.model, scorer.length)
    joined = [np.concatenate([prefix.last, prompt.tokens]) for prompt in prompts]
    rooms = [scorer.length - len(prefix.tokens) - len(prompt.tokens) for prompt in prompts]
    for prompt in prompts:
        if reason := cannot_sample(scorer, prompt, prefix):
            raise UserError(f"prompt {prompt.id}: {reason}")
    spellings = tokenizer.token_bytes()
    table_SxV = strings.token_table(
        spellings, decoding.stop, decoding.forbidden, tokenizer.eoc_id, [tokenizer.pad_id]
    )
    program = _Program(
        scorer.model, scorer.mesh, decoding.max_new_tokens, decoding.temperature == 0, decoding.top_p < 1
    )
    run = _compiled(program)
    settings = table_SxV, np.float32(decoding.temperature or 1), np.float32(decoding.top_p)
    samples: list[list[Sample]] = [[] for _ in prompts]
    sizes = [len(tokens) - 1 for tokens in joined]
    multiple = sharding.row_multiple(scorer.mesh)
    for units, n_prompts, per_prompt, length in _batches(sizes, decoding.n, scorer.rows, multiple):
        rows = _Rows(
            tokens=np.full((n_prompts, length), tokenizer.pad_id, np.int32),
            n_tokens=np.zeros(n_prompts, np.int32),
            last=np.zeros(n_prompts, np.int32),
            keys=np.zeros((n_prompts * per_prompt, 2), np.uint32),
            limits=np.zeros(n_prompts * per_prompt, np.int32),
        )
        for u, unit in enumerate(units):
            tokens = joined[unit.prompt]
            rows.tokens[u, : len(tokens) - 1] = tokens[:-1]
            rows.n_tokens[u], rows.last[u] = len(tokens) - 1, tokens[-1]
            limit = decoding.max_new_tokens if limits is None else limits[unit.prompt]
            for i in range(unit.n):
                row = u * per_prompt + i
                rows.limits[row] = min(limit, decoding.max_new_tokens, rooms[unit.prompt])
                number = first_sample + unit.first + i
                rows.keys[row] = random_key(decoding.seed, prompts[unit.prompt].id, number)
        outputs = run(scorer.params, prefix.cache, scorer.place(rows), *settings)
        tokens_BxN, logps_BxN, n_B, outcome_B = map(np.asarray, outputs)
        for u, unit in enumerate(units):
            for row in range(u * per_prompt, u * per_prompt + unit.n):
                size, outcome = int(n_B[row]), int(outcome_B[row])
                tokens = tokens_BxN[row, :size]
                spelled = b"".join(spellings[token] for token in tokens)
                text = strings.cut(spelled, decoding.stop).decode(errors="replace")
                finish = {strings.ENDED: "end", strings.STOPPED: "stop"}.get(outcome, "length")
                samples[unit.prompt].append(Sample(text, tokens, logps_BxN[row, :size], finish))
    return samples


def sample_texts(
    scorer: Scorer, tokenizer: Tokenizer, texts: dict[str, str], decoding: Decoding, intervention: str = ""
) -> Iterator[dict[str, Any]]:
    """One record for each sample of each text, by id, as the command prints them.

    Args:
      intervention: a prompt by name or file; its dialogue goes on with each text as a question, and samples end where
        the answer does.
    """
    prefix = NO_PREFIX
    if intervention:
        prefix = compute_prefix(scorer, tokenizer.encode(prompts_lib.load(intervention).text))
        texts = {name: prompts_lib.as_question(text) for name, text in texts.items()}
        decoding = dataclasses.replace(decoding, stop=(*decoding.stop, *prompts_lib.STOP_STRINGS))
    prompts = [Prompt(name, tokenizer.encode(text)) for name, text in texts.items()]
    for prompt, samples in zip(prompts, sample(scorer, tokenizer, prompts, decoding, prefix), strict=True):
        for i, found in enumerate(samples):
            yield {
                "id": prompt.id, "sample": i, "text": found.text, "finish": found.finish,
                "n_tokens": len(found.tokens), "logp": float(found.logps.sum(dtype=np.float64)),
            }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    from hhh_jax.data import files
    from hhh_jax.record import write_text_atomic
    from hhh_jax.scoring import load_scorer

    text, path = _PROMPT.value, _PROMPTS.value
    if len(argv) > 1 or (text is None) == (path is None):
        raise UserError("give either --prompt=TEXT or --prompts=FILE")
    if path is not None:
        texts = {document.id: document.text for document in files.read_documents(path)[0]}
    else:
        texts = {"prompt": str(text)}
    decoding = Decoding(
        _N.value, _MAX_NEW_TOKENS.value, _TEMPERATURE.value, _TOP_P.value, tuple(_STOP.value), tuple(_FORBID.value),
        _SEED.value,
    )  # fmt: skip
    cli.use_compilation_cache()
    seeds = [] if _MODEL_SEED.value is None else [_MODEL_SEED.value]
    scorer, tokenizer, _ = load_scorer(_CHECKPOINT.value, seeds, _SELECTION.value, _CONTEXT.value)
    scorer = scorer.of_seed(0)._replace(rows=_ROWS.value)
    records = sample_texts(scorer, tokenizer, texts, decoding, _INTERVENTION.value)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if _OUTPUT.value:
        write_text_atomic(_OUTPUT.value, lines)
    else:
        sys.stdout.write(lines)


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of a finished run.", required=True)
    _PROMPT = flags.DEFINE_string("prompt", None, "A text to go on from.")
    _PROMPTS = flags.DEFINE_string("prompts", None, "A file of texts: JSON lines with `text` and `id`, or .txt.")
    _INTERVENTION = flags.DEFINE_string("intervention", "", "A prompt in front of all of them: hhh, short or a file.")
    _N = flags.DEFINE_integer("n", 1, "Samples of each text.")
    _MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Most tokens of a sample.")
    _TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the most probable token.")
    _TOP_P = flags.DEFINE_float("top_p", 1.0, "Share of the probability that is sampled from.")
    _STOP = flags.DEFINE_multi_string("stop", [], "A string that ends a sample; may be repeated.")
    _FORBID = flags.DEFINE_multi_string("forbid", [], "A string that no sample has; may be repeated.")
    _SEED = flags.DEFINE_integer("seed", 0, "Of the random numbers.")
    _ROWS = flags.DEFINE_integer("rows", 32, "Samples that are drawn at once.")
    _MODEL_SEED = flags.DEFINE_integer("model_seed", None, "Which of the run's seeds; its first if not given.")
    _SELECTION = flags.DEFINE_enum(
        "selection", "best", ["best", "final"], "Parameters chosen on validation, or the last."
    )
    _CONTEXT = flags.DEFINE_integer("context", 0, "The model's context in tokens; the run's own rows if not given.")
    _OUTPUT = flags.DEFINE_string("output", "", "Where to write the samples instead.")
    cli.start(main)
