"""Each benchmark runs, in a tiny setting; what it measures there means nothing."""

import json
import math

import pytest

from hhh_jax.bench import __main__ as program
from hhh_jax.bench.harness import dumps
from hhh_jax.data import sources, streams


def run(name, folder):
    """Rows by name."""
    program.run(name, folder, quick=True)
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["machine"]["quick"]
        assert row["note"] == "no GPU here" if row["value"] is None else 0 < row["value"] < math.inf
        if row["against"]:
            assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])  # of one round
    return {row["name"]: row for row in rows}


def test_every_file_is_a_benchmark():
    assert {"prepare", "loader", "preference", "prefix", "step"} <= set(program.names())
    assert not {"harness", "contenders", "__main__"} & set(program.names())


@pytest.mark.slow
def test_prepare(tmp_path):
    rows = run("prepare", tmp_path)
    assert rows.keys() == dumps.DUMPS.keys() | {"stackexchange, whole command"}


@pytest.mark.slow
def test_loader(tmp_path):
    assert run("loader", tmp_path).keys() == {"documents", "pairs"}


@pytest.mark.slow
def test_prefix(tmp_path):
    assert run("prefix", tmp_path).keys() == {"score, recomputed", "sample, recomputed"}


@pytest.mark.parity
def test_step(tmp_path):
    rows = run("step", tmp_path)
    assert {"tiny: ours, float32", "whole loop, a step of a tiny model", "GPU"} <= rows.keys()


@pytest.mark.parity
@pytest.mark.real_data("ethics/utilitarianism", "tokenizers/gpt_neox_20b")
def test_preference(tmp_path):
    pytest.importorskip("trl", reason="needs trl: bash launch/local.sh bench")
    rows = run("preference", tmp_path)
    assert rows.keys() == {"ethics utilitarianism (1, 0)", "ethics utilitarianism (1, 1)"}


@pytest.mark.slow
@pytest.mark.parametrize("name", dumps.DUMPS)
def test_generated_input_is_as_published(name, tmp_path):
    """Nothing in it is damaged, it has the size asked for, and the same seed makes the same."""
    paths = [tmp_path / part for part in "ab"]
    written = [dumps.write(name, path, 60_000, dumps.Words()) for path in paths]
    assert written[0][1] == written[1][1] >= 60_000
    data = [path.read_bytes() for path, _ in written]
    assert data[0] == data[1] or written[0][0].suffix == ".gz"  # which has a time in it
    source = sources.load(name)
    options = dict(source.options) | dict(dumps.DUMPS[name].options) | {"kind": source.kinds[0], "seed": 0}
    with streams.journal("error"):
        found = [row for block in source.blocks([str(written[0][0])], options) for row in source.read(block, options)]
    damage = [row for row in found if getattr(row, "bad", False)]
    assert len(found) > 10 and len(damage) < len(found) / 100, damage[:3]
