"""Every stage's config, the rung,key=value argument, and refusals that name the key."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hhh_jax import config
from hhh_jax.errors import UserError
from hhh_jax.model import CPU_LADDER, PAPER_LADDER, count_params
from hhh_jax.optim import pretraining_lr

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


def get_config(path: Path, arg: str):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_there_is_a_file_for_every_stage():
    assert {path.stem for path in FILES} == set(config.STAGES)


@pytest.mark.parametrize("rung", [*CPU_LADDER, *PAPER_LADDER])
def test_the_rate_is_that_of_the_parameters_that_the_model_has(rung):
    c = config.base_config("pretrain", rung)
    assert c.optim.lr == pretraining_lr(count_params(config.model_config(c, 300))["n"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("rung", [*CPU_LADDER, *PAPER_LADDER])
def test_every_rung_of_every_stage_is_valid(path, rung):
    c = get_config(path, rung)
    config.check(c)
    assert c.stage == path.stem
    assert c.model.n_layer == {**CPU_LADDER, **PAPER_LADDER}[rung]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_commands_name_their_own_file_and_parse(path):
    text = path.read_text()
    commands = re.findall(r"--config=configs/(\w+)\.py:(\S+)", text)
    assert (path.stem in [stage for stage, _ in commands]) and "python -m hhh_jax.main" in text
    for stage, arg in commands:
        config.check(config.parse_arg(arg, stage))


def test_the_papers_settings_on_its_ladder():
    """Sections C.1 and C.2: PMP in batches of 512 pairs at 0.1x, finetuning 32 at 0.01x, constant, context 1024."""
    pmp, ranked = config.parse_arg("13m", "pmp"), config.parse_arg("13m", "ranked")
    assert (pmp.batch.pairs, pmp.optim.lr_multiple, pmp.data.binarize) == (512, 0.1, True)
    assert (ranked.batch.pairs, ranked.optim.lr_multiple, ranked.data.binarize) == (32, 0.01, False)
    for c in (pmp, ranked):
        assert c.optim.schedule == "constant" and c.data.row_length == 1024
        assert (c.objective.lam, c.objective.mu) == (1.0, 1.0)
        assert c.model.vocab_size == 2**16


def test_argument_settings():
    c = config.parse_arg("98k,task=symbols:T0,init=DIR,seeds=3,optim.lr=1e-3,data.share_context=false", "ranked")
    assert (c.data.source, c.init.checkpoint, c.seeds) == ("symbols:T0", "DIR", (0, 1, 2))
    assert c.optim.lr == 1e-3 and c.data.share_context is False


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("97k", "no rung named '97k' \\(did you mean '98k'"),
        ("98k,optim.lrr=1", "no config key 'optim.lrr' \\(did you mean 'optim.lr'"),
        ("98k,optim.lr=fast", "optim.lr takes a number, not 'fast'"),
        ("98k,data.share_context=maybe", "data.share_context takes true or false"),
        ("98k,task", "'task' is not key=value"),
        ("98k,seeds=two", "seeds takes a whole number"),
    ],
)
def test_bad_arguments(arg, message):
    with pytest.raises(UserError, match=message):
        config.parse_arg(arg, "ranked")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm", "layernom", "did you mean 'layernorm'"),
        ("model.head_dim", 48, "must divide d_model = 64"),
        ("optim.lr", 0.0, "must be above 0"),
        ("model.rotary_fraction", 1.5, "at most 1"),
        ("model.rotary_fraction", 0.03, "it must rotate 2 of 32"),
        ("eval.selections", ("bset",), "takes best and final"),
        ("checkpoint.every_steps", 0, "must be above 0"),
        ("data.max_tokens", 500, "rows have 128 tokens"),
        ("data.row_length", 4096, "data.share_context is True; rows of 4096 tokens have to repeat the context"),
        ("optim.accumulate", 3, "must divide batch.rows"),
        ("objective.mu", -1.0, "at least 0"),
        ("stage", "rank", "did you mean 'ranked'"),
    ],
)
def test_bad_values_are_refused_by_name(name, value, message):
    c = config.base_config("ranked", "98k")
    section, _, key = name.rpartition(".")
    (c[section] if section else c)[key] = value
    with pytest.raises(UserError, match=message) as error:
        config.check(c)
    assert key in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/ranked.py:12k", "--config.optim.lrr=1"], "optim.lrr (did you mean 'lr'?)"),
        (["--config=configs/rankd.py:12k"], "no config file configs/rankd.py"),
        (["--config=configs/ranked.py:12q"], "did you mean '12k'"),
        (["--config=configs/ranked.py:12k,task=word_ordr"], "did you mean 'word_order'"),
        (["--config=configs/ranked.py:12k", "--workdirr=x"], "workdirr"),
        ([], "--config"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, message, tmp_path):
    command = [sys.executable, "-m", "hhh_jax.main", *arguments, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
