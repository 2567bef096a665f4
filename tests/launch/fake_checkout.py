"""A checkout with the launchers, and the fakes on the PATH in the place of gcloud and SLURM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
FAKES = Path(__file__).parent / "fakes"


class Checkout:
    """A git repository with the launchers and a local.sh that installs nothing; `cloud` is the fakes' folder."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cloud, bin_ = folder / "checkout", folder / "cloud", folder / "bin"
        for path in (self.root / "launch", self.cloud, bin_):
            path.mkdir(parents=True)
        for script in LAUNCH.glob("*.sh"):
            shutil.copy(script, self.root / "launch")
        (self.root / "launch/local.sh").write_text('echo "local.sh $*"\n')
        (self.root / ".gitignore").write_text("/runs/\n")
        git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", "-C", str(self.root)]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Begin"]):
            subprocess.run([*git, *command], check=True)
        for name in ("gcloud", "sbatch", "srun", "scontrol"):
            file = FAKES / ("gcloud.py" if name == "gcloud" else "slurm.py")
            (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{file}" {name} "$@"\n')
            (bin_ / name).chmod(0o755)
        shutil.copy(FAKES / "curl", bin_)
        self.environment = os.environ | {"FAKE_CLOUD": str(self.cloud), "PATH": f"{bin_}:{os.environ['PATH']}"}

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", f"launch/{script}", *arguments], cwd=self.root, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *arguments)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def scenario(self, **values: Any) -> None:
        (self.cloud / "scenario.json").write_text(json.dumps(values))

    def calls(self, *prefix: str) -> list[list[str]]:
        """Command lines that the fakes were given, those that begin with `prefix`."""
        file = self.cloud / "calls.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line[: len(prefix)] == list(prefix)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)
