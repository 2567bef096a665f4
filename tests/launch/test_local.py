"""Commands of local.sh, in a checkout whose environment is there and whose python only notes what it is given."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for folder in ("launch", "configs/studies", "constraints", ".venv/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copy(LAUNCH / "local.sh", root / "launch")
    (root / "pyproject.toml").write_text("")
    (root / "constraints" / "default.txt").write_text("")
    (root / ".venv" / "installed").write_text(f"hhh_jax[test] in {root}\n")
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >>"$NOTES"\ncase "$*" in *"$BROKEN"*) exit 1 ;; esac\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    for name in ("embedded", "prompting", "another"):
        (root / "configs" / "studies" / f"{name}.py").write_text("")
    return root


def local(root: Path, *arguments: str, broken: str = "nothing", **variables: str) -> tuple[int, list[str], str]:
    """Status, the command lines that python was given, and what was said."""
    notes = root / "notes"
    notes.unlink(missing_ok=True)
    bare = {key: value for key, value in os.environ.items() if not key.startswith("HHH_JAX_")}
    bin_ = root.parent / "bin"  # no accelerator
    bin_.mkdir(exist_ok=True)
    (bin_ / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (bin_ / "nvidia-smi").chmod(0o755)
    environment = bare | {"NOTES": str(notes), "BROKEN": broken, "PATH": f"{bin_}:{bare['PATH']}"} | variables
    done = subprocess.run(
        ["bash", str(root / "launch" / "local.sh"), *arguments], cwd=root.parent, env=environment, text=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    return done.returncode, notes.read_text().splitlines() if notes.exists() else [], done.stdout + done.stderr


def _study(name: str, runs: Path) -> str:
    return f"-m hhh_jax.study --config=configs/studies/{name}.py --workdir={runs}/{name}"


def test_gallery_runs_every_study_in_order_and_draws(checkout):
    for name in ("objectives", "reranking", "pmp", "pmp_needs", "discriminator", "beyond"):
        (checkout / "configs" / "studies" / f"{name}.py").write_text("")
    (checkout / "configs" / "studies" / "pmp.py").unlink()
    status, calls, _ = local(checkout, "gallery")
    runs = checkout / "runs"
    order = ("embedded", "objectives", "prompting", "reranking", "pmp_needs", "discriminator", "beyond", "another")
    drawn = f"-m hhh_jax.gallery --studies={runs} --out={runs}/gallery"
    assert status == 0 and calls == [*(_study(name, runs) for name in order), drawn]


def test_gallery_of_some_studies_elsewhere(checkout):
    status, calls, _ = local(checkout, "gallery", "another", HHH_JAX_WORKDIR="mine")
    runs = checkout.parent / "mine"
    drawn = f"-m hhh_jax.gallery --studies={runs} --out={runs}/gallery"
    assert status == 0 and calls == [_study("another", runs), drawn]


def test_a_broken_study_does_not_stop_the_others_and_is_told(checkout):
    status, calls, said = local(checkout, "gallery", "prompting", "another", broken="prompting")
    assert status == 1 and len(calls) == 3 and "broken: prompting; the same command tries again" in said


def test_a_study_that_there_is_not(checkout):
    status, calls, said = local(checkout, "gallery", "prompting", "promting")
    assert status == 1 and not calls and "no study 'promting': there is no configs/studies/promting.py" in said


def test_study_is_the_embedded_one_or_the_full_one(checkout):
    runs = checkout / "runs"
    assert local(checkout, "study")[1] == [_study("embedded", runs)]
    full = f"-m hhh_jax.study --config=configs/studies/embedded.py:full --workdir={runs}/full --plan"
    assert local(checkout, "study", "--preset=full", "--plan")[1] == [full]


def test_an_unknown_command_shows_the_usage(checkout):
    status, calls, said = local(checkout, "galery")
    assert status == 2 and not calls and "unknown command 'galery'" in said and "local.sh gallery [NAME...]" in said
