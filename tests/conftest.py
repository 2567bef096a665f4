"""What all tests share: the CPU, a compilation cache, and which skips are allowed.

`parity` tests skip where PyTorch or transformers is missing, `real_data` tests where ``HHH_JAX_DATA`` names
no folder with their files. With ``HHH_JAX_CI=1`` a skip that tests/expected_skips.txt does not list fails the
session, so that nothing drops out of continuous integration unseen.
"""

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import corpus, pairs, pretrained, ranked  # noqa: F401

HERE = Path(__file__).parent

# Read when jax is imported, which the test modules do after this file.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def pytest_collection_finish() -> None:
    """Spares the garbage collector the modules, which else cost a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("parity"):
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"needs {' and '.join(missing)}: bash launch/local.sh parity")
    for marker in item.iter_markers("real_data"):
        folder = os.environ.get("HHH_JAX_DATA")
        if not folder:
            pytest.skip("needs the folder of real data: set HHH_JAX_DATA")
        for file in marker.args:
            if not Path(folder, file).exists():
                pytest.skip(f"HHH_JAX_DATA={folder} lacks {file}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data; for tests marked `real_data`."""
    return Path(os.environ["HHH_JAX_DATA"])


@pytest.fixture(scope="session")
def isolation() -> None:
    """Skips where programs cannot be isolated, so that none can be run."""
    from hhh_jax.errors import UserError
    from hhh_jax.evals import sandbox

    try:
        sandbox.require_isolation()
    except UserError as error:
        pytest.skip(str(error))


def _unexpected_skips(config: pytest.Config) -> Iterator[str]:
    """Lines `node id: reason` of the skips whose node id starts with no line of tests/expected_skips.txt."""
    listed = HERE / "expected_skips.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    expected = tuple(line for line in lines if line and not line.startswith("#"))
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []) if reporter else []:
        if not report.nodeid.startswith(expected):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            yield f"{report.nodeid}: {reason}"


def _strict() -> bool:
    return os.environ.get("HHH_JAX_CI") == "1"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _strict() and session.exitstatus == pytest.ExitCode.OK and any(_unexpected_skips(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _strict() and (lines := list(_unexpected_skips(config))):
        terminalreporter.section("skips that tests/expected_skips.txt does not list", red=True, bold=True)
        for line in lines:
            terminalreporter.line(line)
