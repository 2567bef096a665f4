"""Where runs are kept: a folder of this machine, or of an object store that etils and orbax can write (gs://, s3://).

An object of a store appears whole or not at all, but cannot be appended to, and a folder of it cannot be renamed.
"""

import os

from etils import epath

from hhh_jax.errors import UserError


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store."""
    return "://" in os.fspath(path)


def open_path(path: str | os.PathLike[str]) -> epath.Path:
    """`path`, absolute if it is local. Raises UserError for a store that this installation cannot reach."""
    if not is_remote(path):
        return epath.Path(os.path.abspath(path))
    import fsspec

    protocol = os.fspath(path).partition("://")[0]
    for name in (protocol, "gcs" if protocol == "gs" else protocol):
        # Others write there, too, orbax among them: what was listed before says little.
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    try:
        epath.Path(path).exists()
    except (ImportError, KeyError, NotImplementedError, ValueError) as error:
        raise UserError(f"cannot use {path}: {error} (gs:// takes pip install gcsfs)") from error
    return epath.Path(path)
