"""Small runs on files as a user writes them; conftest.py makes their fixtures known to all tests.

The project is imported within: jax must not be imported before conftest.py has set its environment.
"""

import json
import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """60 documents of a small language: sentences of colors and animals."""
    rng = random.Random(0)
    words = [
        "red", "green", "blue", "white", "fox", "hen", "cow", "cat",
        "runs", "sleeps", "eats", "sings", "now", "here", "often",
    ]  # fmt: skip
    documents = [" ".join(rng.choice(words) for _ in range(40)) + "." for _ in range(60)]
    path = tmp_path_factory.mktemp("data") / "corpus.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """200 pairs as a user writes them: the good answer names the animal of the question."""
    rng = random.Random(1)
    animals = ["fox", "hen", "cow", "cat"]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with path.open("w") as file:
        for i in range(200):
            good, bad = rng.sample(animals, 2)
            context = f"{rng.choice(['red', 'blue', 'green'])} {good} {i}: which animal?"
            file.write(json.dumps({"context": context, "good": f" {good}", "bad": f" {bad}"}) + "\n")
    return path


def tiny(stage: str, source: Path, rung: str = "12k", **settings):
    """A config of two seeds that trains in a second, with one program of its update to compile.

    `settings` by full field names with __ for the point.
    """
    from hhh_jax import config

    c = config.parse_arg(f"{rung},data={source}", stage)
    c.model.update(vocab_size=300)
    c.data.update(row_length=64, max_tokens=32, slots=4, row_sizes=1)
    c.batch.update(rows=4, pairs=8)
    c.tokens, c.log_every, c.term_norms_every, c.seeds = 4 * 64 * 12, 1, 1, (0, 1)
    for name, value in settings.items():
        config.set_field(c, name.replace("__", "."), str(value))
    return c


def arguments(c) -> list[str]:
    """The command-line arguments of `hhh_jax.main` that give a config of `tiny`."""
    from hhh_jax import config

    there = config.fields(config.parse_arg(f"{c.rung},seeds={len(c.seeds)}", c.stage))
    changed = {name: value for name, value in config.fields(c).items() if value != there[name]}
    return [f"--config=configs/{c.stage}.py:{c.rung},seeds={len(c.seeds)}"] + [
        f"--config.{name}={value}" for name, value in changed.items()
    ]


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory) -> Path:
    """Directory of a finished language-model run on `corpus`."""
    from hhh_jax import run

    workdir = tmp_path_factory.mktemp("pretrained")
    run.run(tiny("pretrain", corpus), workdir, quiet=True)
    return workdir


@pytest.fixture(scope="session")
def ranked(pairs, pretrained, tmp_path_factory) -> Path:
    """Directory of a finished preference-model run on `pairs`, from `pretrained`."""
    from hhh_jax import run

    workdir = tmp_path_factory.mktemp("ranked")
    run.run(tiny("ranked", pairs, init__checkpoint=pretrained), workdir, quiet=True)
    return workdir
