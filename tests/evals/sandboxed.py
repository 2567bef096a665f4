"""Programs that run in a sandbox, as the tests of its parts need them.

A hostile program tries something and returns what came of it, which its tests compare with what a program in a sandbox
can have. It is our own and tells the truth; what it could do to the host is looked at from the host.
"""

import contextlib
import os
import textwrap
import time
from pathlib import Path

from hhh_jax.evals import sandbox
from hhh_jax.evals.sandbox import Limits, Program, run_many

PASSED = ("passed", "", "")
QUICK = Limits(cpu_s=1, wall_s=0.5)


def processes(mark):
    """The ids of the processes with `mark` in their command line."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
    return found


def none_left(mark):
    """Whether the processes go, given time."""
    end = time.monotonic() + 30
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.02)
    return not processes(mark)


def verdict(code, tests="assert candidate() == 1", limits=sandbox._LIMITS, setup=""):
    """What becomes of code that defines f, for the body of a check."""
    check = "def check(candidate):\n" + textwrap.indent(textwrap.dedent(tests), "    ")
    (found,) = run_many(
        [Program(textwrap.dedent(code), "f", check, setup)], allow_untrusted=True, limits=limits, workers=1
    )
    return found
