"""Runs in an object store: a real client of Google Cloud Storage, and an emulator of its server over loopback."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import arguments, tiny

from hhh_jax import run, storage
from hhh_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.open_path("a/b") == storage.open_path(tmp_path / "a" / "b")
    assert storage.is_remote("gs://bucket/a") and not storage.is_remote(tmp_path)


def test_a_store_that_is_not_known_is_refused():
    with pytest.raises(UserError, match=r"cannot use ftp://host/run"):
        storage.open_path("ftp://host/run")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Environment variables that lead the clients, gcsfs and tensorstore, to an emulator with a bucket."""
    program = shutil.which("fake-gcs-server")  # github.com/fsouza/fake-gcs-server
    if program is None or importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs gcsfs and the program fake-gcs-server")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port, "external-url": url}
    command = [program, "-log-level=error", *(f"-{name}={value}" for name, value in options.items())]
    with (tmp_path_factory.mktemp("cloud") / "log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
        bucket = urllib.request.Request(f"{url}/storage/v1/b", b'{"name": "bucket"}')
        bucket.add_header("Content-Type", "application/json")
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(bucket):
                break
            time.sleep(0.1)
        yield {
            "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "FSSPEC_GCS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }  # fmt: skip
        server.kill()


def test_a_run_in_a_bucket_is_killed_goes_on_and_is_evaluated(cloud, corpus, tmp_path):
    """Its results are those of a run in a folder. A save that was not finished is no checkpoint."""
    c = tiny("pretrain", corpus, checkpoint__every_steps=4)
    run.run(c, tmp_path / "local", quiet=True)

    def python(*command: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **cloud}
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    program = ["-m", "hhh_jax.main", "--workdir=gs://bucket/runs/x", *arguments(c)]
    killed = f"""if True:
        import os, signal, sys
        from hhh_jax import cli, main
        from hhh_jax.checkpoint import Checkpoints
        written = Checkpoints._write_checksums
        def write_and_die(self):
            written(self)
            if self._saving == 8:
                os.kill(os.getpid(), signal.SIGKILL)
        Checkpoints._write_checksums = write_and_die
        sys.argv = ["main", *{program[2:]!r}]
        cli.start(main.main)
    """
    done = python("-c", killed)
    assert done.returncode == -9, done.stderr
    look = "from hhh_jax.checkpoint import steps; print(steps('gs://bucket/runs/x/checkpoints'))"
    assert python("-c", look).stdout == "[4]\n"
    done = python(*program)
    assert done.returncode == 0, done.stderr
    assert python("-c", look).stdout == "[8, 12]\n"
    read = """if True:
        from hhh_jax.record import read_metrics
        from hhh_jax.storage import open_path
        import json
        where = open_path("gs://bucket/runs/x")
        print(json.dumps([read_metrics(where / "metrics.jsonl"), (where / "rows.jsonl").read_text()]))
    """
    metrics, rows = json.loads(python("-c", read).stdout)
    local = [json.loads(line) for line in (tmp_path / "local" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in metrics] == [(line["step"], line["loss"]) for line in local]
    expected = [json.loads(line)["value"] for line in (tmp_path / "local" / "rows.jsonl").read_text().splitlines()]
    assert [json.loads(line)["value"] for line in rows.splitlines()] == expected
    again = python("-m", "hhh_jax.evaluate", "--checkpoint=gs://bucket/runs/x", "--selection=final")
    assert [json.loads(line)["value"] for line in again.stdout.splitlines()] == pytest.approx(expected, rel=1e-6)
