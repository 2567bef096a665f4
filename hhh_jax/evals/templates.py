"""The texts around the items of evaluations, which are data: templates.toml, or a user's file of the same keys."""

import string
import tomllib
from importlib import resources
from pathlib import Path

from hhh_jax.errors import UserError

Templates = dict[str, dict[str, str]]
"""``{evaluation: {form: text}}``."""


def load(path: str | None = None) -> Templates:
    """The project's templates, with those of the file at `path` in the place of the ones that it has.

    Raises UserError, by file and key, for what can't be read, an unknown key, or other names in braces.
    """
    ours = _parse(resources.files("hhh_jax.evals").joinpath("templates.toml").read_text(encoding="utf-8"), "")
    if path is None:
        return ours
    try:
        theirs = _parse(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--templates={path}: cannot be read: {error}") from error
    merged = {name: dict(forms) for name, forms in ours.items()}
    for name, forms in theirs.items():
        for form, text in forms.items():
            where = f"{path}: {name}.{form}"
            if form not in ours.get(name, {}):
                known = ", ".join(f"{n}.{f}" for n, fs in ours.items() for f in fs)
                raise UserError(f"{where}: no such template; there are {known}")
            if fields(text, where) != fields(ours[name][form], where):
                raise UserError(f"{where}: must have exactly {sorted(fields(ours[name][form], where))} in braces")
            merged[name][form] = text
    return merged


def fields(text: str, where: str) -> set[str]:
    """The names in braces. Raises UserError for braces that are not closed."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _parse(text: str, path: str) -> Templates:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}") from error
    for name, forms in tables.items():
        if not isinstance(forms, dict) or not all(isinstance(form, str) for form in forms.values()):
            raise UserError(f"{path}: {name} must be a table of texts")
    return tables
