"""What the command-line programs share: the config flag, errors as one line, and the compilation cache."""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from hhh_jax.errors import UserError


def define_config() -> flags.FlagHolder:
    """The flag ``--config=FILE.py[:ARGUMENT]`` with overrides ``--config.SECTION.KEY=VALUE``."""
    return config_flags.DEFINE_config_file(
        "config", None, "A file of configs/, as configs/ranked.py:98k,task=word_order."
    )


def config_arguments() -> list[str]:
    """What was given of ``--config`` and its overrides, to hand on to another process."""
    given = []
    for i, argument in enumerate(sys.argv):
        if re.match(r"--?config(\..*)?=", argument):
            given.append(argument)
        elif re.fullmatch(r"--?config(\.\S*)?", argument):
            given.append(f"{argument}={sys.argv[i + 1]}")
    return given


def config_path() -> str:
    """What was given to ``--config``: ``FILE.py`` or ``FILE.py:ARGUMENT``."""
    return next(argument.partition("=")[2] for argument in config_arguments() if re.match(r"--?config=", argument))


def define_process_flags() -> None:
    """The flags of a program that can be one of several processes; `start` heeds them."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; not needed where the environment says it.")
    flags.DEFINE_integer("num_processes", -1, "How many processes there are, with --coordinator.")
    flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")
    flags.DEFINE_integer(
        "heartbeat_timeout_seconds", 50, "When a process has not been heard of for so long, the others stop."
    )


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk between processes; ``JAX_COMPILATION_CACHE_DIR`` names another place."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hhh_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def start(main: Callable[[Any], None]) -> None:
    """Runs ``main`` behind absl's flags. A UserError becomes one line on standard error and exit status 2."""

    def guarded(argv: Any) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            with _processes():
                main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    _supervise()
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except UserError as error:  # from a config file, which is read while flags are parsed
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _supervise() -> None:
    if "coordinator" in flags.FLAGS:
        from hhh_jax import distributed

        if distributed.in_cluster() or any(re.match(r"--?num_processes\b", argument) for argument in sys.argv):
            distributed.supervise()


def _processes() -> contextlib.AbstractContextManager[None]:
    """Joins the other processes, if the program can be one of several and is."""
    if "coordinator" not in flags.FLAGS:
        return contextlib.nullcontext()
    from hhh_jax import distributed

    given = flags.FLAGS
    return distributed.joined(
        given.coordinator, given.num_processes, given.process_id, given.heartbeat_timeout_seconds
    )


def _parse_flags(argv: list[str]) -> list[str]:
    given = [argument.partition("=")[2] for argument in config_arguments() if re.match(r"--?config=", argument)]
    for path in given:
        if not Path(path.partition(":")[0]).is_file():
            there = ", ".join(sorted(map(str, Path("configs").rglob("*.py")))) or "none below this folder"
            raise UserError(f"no config file {path.partition(':')[0]}; there are {there}")
    if not given and "config" in flags.FLAGS and not any("help" in argument for argument in argv):
        raise UserError("give --config=FILE.py[:ARGUMENT], as --config=configs/ranked.py:98k,task=word_order")
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        given = [a.partition("=")[0].lstrip("-").removeprefix("config.") for a in config_arguments() if "config." in a]
        near = re.search(r'Did you mean "([^"]+)"', str(error))
        raise UserError(
            f"no such config key among {', '.join(given)}" + (f" (did you mean {near[1]!r}?)" if near else "")
        ) from error
    except flags.Error as error:
        raise UserError(str(error)) from error
