"""Contenders as processes of their own, so that their thread pools and allocators don't disturb each other.

A contender gets its settings as JSON in its last argument, gets ready (compiles, warms up), and then answers each line
on its standard input, a number of steps to do, with a line of JSON; between these it sleeps. It ends with its input.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from hhh_jax.errors import UserError


class Contender:
    """The parent's side. Raises UserError, with the end of its standard error, if the process fails.

    Args:
      module: what ``python -m`` starts.
      settings: plain JSON.
      env: environment variables besides this process's.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | (env or {}),
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, steps: int) -> dict[str, Any]:
        """Has it do `steps` steps; what it says of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read().strip().splitlines()[-3:]
        raise UserError(f"{self._module} ended with status {self._process.returncode}: {' / '.join(tail)}")

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Channel:
    """The contender's side; what else it prints goes to standard error."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = json.loads(sys.argv[-1])
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def answer(self, **facts: Any) -> None:
        """Says that it is ready, or what came of the steps asked for."""
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()

    def steps(self) -> int:
        """Waits for the next request; 0 at the end."""
        return int(sys.stdin.readline() or 0)
