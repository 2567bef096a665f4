"""The configuration of one run: its fields with their defaults, the ``rung,key=value`` argument, and its checking."""

import difflib
from collections.abc import Mapping
from typing import Any

import ml_collections

from hhh_jax import attention
from hhh_jax.errors import UserError
from hhh_jax.model import CPU_LADDER, PAPER_LADDER, ModelConfig
from hhh_jax.optim import pretraining_lr

STAGES = ("pretrain", "lm_finetune", "distill", "imitation", "binary", "ranked", "dpo", "pmp", "discriminator")
OBJECTIVES = {
    "pretrain": "lm", "lm_finetune": "lm", "imitation": "imitation", "distill": "distillation",
    "discriminator": "discriminator", "dpo": "dpo",
}  # fmt: skip
"""Objectives of the stages; that of the others is ``preference``."""

PAIR_OBJECTIVES = ("imitation", "preference", "dpo")
"""Objectives that train on pairs; the others train on text, or on rows with a label a token."""

CHOICES = {
    "stage": STAGES,
    "ladder": ("cpu", "paper"),
    "model.positions": ("rotary", "learned"),
    "model.residual": ("sequential", "parallel"),
    "model.norm": ("layernorm", "rmsnorm"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": attention.KINDS,
    "model.remat": ("none", "full", "dots"),
    "data.bad_rows": ("error", "drop"),
    "objective.name": ("lm", "imitation", "preference", "dpo", "distillation", "discriminator"),
    "optim.schedule": ("constant", "linear", "cosine"),
    "init.score_head": ("fresh", "keep"),
}
"""Fields that take one of a few values."""

LR_MULTIPLES = {"paper": {"pmp": 0.1, "finetune": 0.01}, "cpu": {"pmp": 0.5, "finetune": 0.3}}
"""Learning rates of later stages as multiples of pretraining's. The paper's (C.1, C.2) hardly move our small models.
It states none for distillation and the discriminator, which take PMP's."""

POSITIVE = (
    "model.n_layer", "model.aspect", "model.head_dim", "data.row_length", "data.max_tokens", "data.slots",
    "data.row_sizes", "objective.beta", "batch.rows", "batch.pairs", "optim.lr", "optim.lr_multiple",
    "optim.accumulate", "eval.rows", "log_every", "checkpoint.every_steps",
)  # fmt: skip
"""Fields that must be above zero."""


def base_config(stage: str, rung: str) -> ml_collections.ConfigDict:
    """Every field of a run's config, with the defaults of its ladder.

    On the paper's ladder these are the paper's where it states them (sections 1.2, C.1, C.2). On the CPU ladder rows
    are 128 tokens, the vocabulary 1024 and the compute dtype float32, and a step holds few pairs.

    Args:
      stage: one of `STAGES`.
      rung: a name of `PAPER_LADDER` (13m, ..., 52b) or `CPU_LADDER` (12k, ..., 2.7m).
    """
    if rung not in PAPER_LADDER and rung not in CPU_LADDER:
        names = [*PAPER_LADDER, *CPU_LADDER]
        raise UserError(f"no rung named {rung!r}{_nearest(rung, names)}; there are {', '.join(names)}")
    cpu = rung in CPU_LADDER
    n_layer = CPU_LADDER[rung] if cpu else PAPER_LADDER[rung]
    width = 32 if cpu else 128
    lm = stage in ("pretrain", "lm_finetune")
    rows = stage in ("distill", "discriminator")  # of `hhh_jax.data.labeled_rows`
    length = 128 if cpu else 8192 if lm else 1536 if stage == "distill" else 1024
    c = ml_collections.ConfigDict()
    c.stage, c.rung, c.ladder = stage, rung, "cpu" if cpu else "paper"
    c.seeds = (0,)  # of parameters, score head and data order; several train together
    c.model = {
        "n_layer": n_layer,
        "aspect": width,
        "head_dim": width,
        "vocab_size": 1024 if cpu else 65536,
        "positions": "rotary",
        "rotary_fraction": 1.0,
        "rotary_base": 10000.0,
        "max_positions": 128 if cpu else 8192,
        "residual": "sequential",
        "norm": "layernorm",
        "biases": True,
        "dtype": "float32" if cpu else "bfloat16",
        "attention": "auto",  # the platform's kernel, or one of hhh_jax.attention.KINDS
        "remat": "none" if cpu else "dots" if n_layer <= 4 else "full",  # dots fits 16 GiB chips up to 13m
        "unroll": n_layer if cpu else 1,
        "shard_sequence": True,  # divide the residual stream along tokens, where mesh.tensor is above 1
    }
    c.data = {
        "source": "stdlib",  # a name of hhh_jax.data.datasets or a path
        "seed": 0,  # of what a source draws (levels, rankings, ...); never of the order
        "limit": 0,  # training pairs to use; 0 takes all
        "binarize": False,  # GOOD:/BAD: pairs (section 4.1)
        "flip": 0.0,  # share of the training pairs whose sides are exchanged, drawn with data.seed; 0.5 shuffles labels
        "end_of_context": True,  # ends each side of a pair, and its score is read there; else at the last token
        "bad_rows": "error",  # or drop: count and go on
        "row_length": length,
        "max_tokens": length // 2,  # of one side of a pair, context and end-of-context included
        "slots": max(length // 16, 1),  # pairs a row can hold
        "share_context": length <= attention.MASKED_TOKENS,  # of the sides of a pair; longer rows have to repeat it
        "row_sizes": 2 if cpu else 4,  # numbers of rows that a batch of pairs may take; each is a program to compile
        "tokenizer": "",  # a tokenizer.json; empty: that of init.checkpoint, else one trained on the source
    }
    c.objective = {"name": OBJECTIVES.get(stage, "preference"), "lam": 1.0, "mu": 1.0, "beta": 0.1}
    c.batch = {"rows": 8 if cpu else 64, "pairs": 32}  # rows of batches of text; pairs of all others
    c.steps = 0  # updates; 0: as many as tokens or epochs ask for
    c.tokens = 1e6 if cpu else 4e11  # of LM stages
    c.epochs = 1.0  # of stages on pairs or labeled rows
    c.optim = {
        "lr": pretraining_lr(12 * n_layer * (n_layer * width) ** 2),  # `count_params` would trace the model
        "lr_multiple": 1.0,  # the stage's share of the pretraining rate
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip": 1.0,
        "warmup_steps": 10 if cpu else 1000,
        "schedule": "cosine",
        "final_fraction": 0.1,
        "accumulate": 1,
    }
    c.init = {"checkpoint": "", "score_head": "fresh"}  # a run directory; "" starts from random parameters
    c.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    c.eval = {
        "rows": 8 if cpu else 32,  # of an evaluation batch
        "points": 1 if lm or rows else 8,  # evenly spaced validations; the best one's parameters are kept
        "split": "test",  # what is tested on; of a prepared folder also test_no_overlap, see its data card
        "limit": 0,  # test items; 0 takes all
        "validation_limit": 0,  # validation items
        "selections": ("best", "final"),  # which parameters are tested: chosen on validation, and the last ones
        "curve": (),  # numbers of pairs seen at which the test set is read too, for curves within one run
        "tasks": (),  # of LM stages and PMP: tasks on whose test sets the model is scored as it is
    }
    c.log_every = 10
    c.term_norms_every = 50  # steps between records of each term's gradient norm; 0: never
    c.checkpoint = {"every_steps": 1000, "every_minutes": 10.0, "keep": 2, "keep_every_steps": 0}  # 0: the newest alone
    # How the results table names the run; a study sets them.
    c.labels = {"study": "", "init": "" if stage == "pretrain" else "lm", "intervention": ""}
    if not lm:
        multiple = LR_MULTIPLES[c.ladder]["pmp" if stage == "pmp" or rows else "finetune"]
        c.optim.update(schedule="constant", lr_multiple=multiple)
    if stage == "pmp":
        c.data.binarize = True
        c.batch.pairs = 32 if cpu else 512
        c.eval.points = 1
    return c


def parse_arg(arg: str, stage: str) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """``"13m,task=symbols:T0,data=DIR"`` to the stage's base config and what else the argument says.

    ``task`` and ``data`` set ``data.source``, ``init`` sets ``init.checkpoint``, ``seeds`` (a number) sets the first n
    seeds; any other key must be a field's full name (``optim.lr=1e-3``). Raises UserError for anything else.
    """
    rung, *settings = (arg or "13m").split(",")
    c = base_config(stage, rung)
    for setting in settings:
        key, found, value = setting.partition("=")
        if not found:
            raise UserError(f"config argument {arg!r}: {setting!r} is not key=value")
        if key == "seeds":
            c.seeds = tuple(range(_number(key, value, int)))
            continue
        name = {"task": "data.source", "data": "data.source", "init": "init.checkpoint"}.get(key, key)
        set_field(c, name, value)
    return c


def fields(c: Any, prefix: str = "") -> dict[str, Any]:
    """All fields of a config by full name."""
    flat: dict[str, Any] = {}
    for key, value in c.items():
        flat |= fields(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return flat


def set_field(c: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Sets a field by full name from text, as the type that it has. Raises UserError with the nearest valid name."""
    flat = fields(c)
    if name not in flat:
        raise UserError(f"no config key {name!r}{_nearest(name, flat)}")
    old = flat[name]
    value: Any = text
    if isinstance(old, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"config key {name} takes true or false, not {text!r}")
        value = text.lower() == "true"
    elif isinstance(old, int | float):
        value = _number(name, text, type(old))
    assign(c, {name: value})


def assign(c: ml_collections.ConfigDict, settings: Mapping[str, Any]) -> None:
    """Sets fields by full name. What they are set to is `check`'s to judge."""
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        (c[section] if section else c)[key] = value


def check(c: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first value that no run can have, by its full name and with what would do."""
    flat = fields(c)
    expected = fields(base_config(c.stage, c.rung)) if c.get("stage") in STAGES else flat
    for name in flat:
        if name not in expected:
            raise UserError(f"no config key {name!r}{_nearest(name, expected)}")
    for name, choices in CHOICES.items():
        if flat[name] not in choices:
            near = _nearest(str(flat[name]), choices)
            raise UserError(f"config key {name} is {flat[name]!r}{near}; it takes {', '.join(choices)}")
    for name in POSITIVE:
        if not flat[name] > 0:
            raise UserError(f"config key {name} is {flat[name]}; it must be above 0")
    m = c.model
    if (m.n_layer * m.aspect) % m.head_dim:
        raise UserError(f"config key model.head_dim is {m.head_dim}; it must divide d_model = {m.n_layer * m.aspect}")
    if not 0 < m.rotary_fraction <= 1:
        raise UserError(f"config key model.rotary_fraction is {m.rotary_fraction}; it must be above 0 and at most 1")
    if m.positions == "rotary" and m.head_dim * m.rotary_fraction < 2:
        raise UserError(f"config key model.rotary_fraction is {m.rotary_fraction}; it must rotate 2 of {m.head_dim}")
    if not set(c.eval.selections) <= {"best", "final"}:
        raise UserError(f"config key eval.selections is {tuple(c.eval.selections)}; it takes best and final")
    if m.positions == "learned" and m.max_positions < c.data.row_length:
        raise UserError(f"config key model.max_positions is {m.max_positions}; rows have {c.data.row_length} tokens")
    if not c.seeds or len(set(c.seeds)) != len(c.seeds):
        raise UserError(f"config key seeds is {tuple(c.seeds)}; give one or more different numbers")
    if c.data.max_tokens * (2 if c.data.binarize else 1) > c.data.row_length:
        raise UserError(f"config key data.max_tokens is {c.data.max_tokens}; rows have {c.data.row_length} tokens")
    pairs = c.objective.name in PAIR_OBJECTIVES
    if pairs and c.data.share_context and c.data.row_length > attention.MASKED_TOKENS:
        raise UserError(
            f"config key data.share_context is True; rows of {c.data.row_length} tokens have to repeat the context: "
            f"set it to false, or data.row_length to at most {attention.MASKED_TOKENS}"
        )
    if not 0 <= c.data.flip <= 1:
        raise UserError(f"config key data.flip is {c.data.flip}; it is a share, from 0 to 1")
    lam, mu = c.objective.lam, c.objective.mu
    if c.objective.name == "preference" and not (min(lam, mu) >= 0 and max(lam, mu) > 0):
        raise UserError("config keys objective.lam and objective.mu: both must be at least 0, and one above it")
    if c.batch.rows % c.optim.accumulate:
        raise UserError(
            f"config key optim.accumulate is {c.optim.accumulate}; it must divide batch.rows = {c.batch.rows}"
        )


def model_config(c: ml_collections.ConfigDict, vocab_size: int) -> ModelConfig:
    """The model of a run, with the vocabulary of its tokenizer."""
    return ModelConfig(**(c.model.to_dict() | {"vocab_size": vocab_size}))


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"config key {name} takes {wanted}, not {text!r}") from None


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""
