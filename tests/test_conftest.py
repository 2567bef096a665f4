"""The skip policy of conftest.py, in small test sessions of their own."""

import importlib.util
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

INI = """
[pytest]
addopts = -p no:hypothesispytest
markers =
    parity
    real_data
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty folder with this project's conftest.py, and neither of its variables set."""
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makeini(INI)
    monkeypatch.delenv("HHH_JAX_CI", raising=False)
    monkeypatch.delenv("HHH_JAX_DATA", raising=False)
    return pytester


SKIPS_ITSELF = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('too tired')\n"


def test_a_skip_is_allowed_outside_ci(session: pytest.Pytester) -> None:
    session.makepyfile(SKIPS_ITSELF)
    result = session.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 0


@pytest.mark.parametrize(
    "source",
    [
        SKIPS_ITSELF,
        "import pytest\npytest.importorskip('no_such_module')\n",
        "import pytest\n@pytest.mark.skipif(True, reason='whatever')\ndef test_b(): pass\n",
    ],
    ids=["in the test", "whole module", "by mark"],
)
def test_an_unlisted_skip_fails_ci(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("HHH_JAX_CI", "1")
    session.makepyfile(test_few=source, test_more="def test_c(): pass\n")
    result = session.runpytest_inprocess()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*expected_skips.txt does not list*", "test_few.py*: *"])


def test_a_listed_skip_passes_ci(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HHH_JAX_CI", "1")
    session.makepyfile(test_few=SKIPS_ITSELF)
    session.path.joinpath("expected_skips.txt").write_text("# only as root\ntest_few.py::test_b\n")
    result = session.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 0


def test_ci_keeps_the_status_of_a_failure(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HHH_JAX_CI", "1")
    assert session.runpytest_inprocess().ret == pytest.ExitCode.NO_TESTS_COLLECTED
    session.makepyfile("def test_a(): assert 1 == 2\n")
    assert session.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_real_data_needs_the_folder_and_the_file(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session.makepyfile(
        "import pytest\n"
        "@pytest.mark.real_data('sub/a.txt')\n"
        "def test_a(real_data): assert (real_data / 'sub/a.txt').read_text() == 'x'\n"
    )
    session.runpytest_inprocess("-rs").stdout.fnmatch_lines("*set HHH_JAX_DATA*")
    data = tmp_path / "data"
    monkeypatch.setenv("HHH_JAX_DATA", str(data))
    session.runpytest_inprocess("-rs").stdout.fnmatch_lines("*lacks sub/a.txt*")
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "a.txt").write_text("x")
    session.runpytest_inprocess().assert_outcomes(passed=1)


def test_parity_needs_torch_and_transformers(session: pytest.Pytester) -> None:
    session.makepyfile("import pytest\n@pytest.mark.parity\ndef test_a(): pass\n")
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    session.runpytest_inprocess().assert_outcomes(passed=int(installed), skipped=int(not installed))
