"""Published datasets, one file each: how their files become records. `hhh_jax.data.prepare` runs them."""

import difflib
import importlib

from hhh_jax.data.source import Source
from hhh_jax.errors import UserError

MODULES = {
    "stackexchange": "stackexchange",
    "reddit": "reddit",
    "wikipedia": "wikipedia",
    "text": "text",
    "mix": "mix",
    "hub": "hub",
    "summarize": "summarize",
    "hellaswag": "hellaswag",
    "ethics": "ethics",
    "lambada": "lambada",
    "hh_rlhf": "hh_rlhf",
    "hhh_alignment": "hhh_alignment",
    "truthfulqa": "truthfulqa",
    "toxicity": "toxicity",
    "humaneval": "code",
    "quixbugs": "code",
}


def load(name: str) -> Source:
    """The source of that name; a name with a dot is that of anybody's module that has a `SOURCE`.

    Raises UserError if there is none.
    """
    if "." in name:
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"--source={name}: {error}; a name with a dot is that of a module with a SOURCE") from None
        if not isinstance(getattr(found, "SOURCE", None), Source):
            raise UserError(f"--source={name}: the module has no SOURCE of hhh_jax.data.source.Source")
        return found.SOURCE
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1, cutoff=0.0)[0]
        raise UserError(f"no source named {name!r}; did you mean {near!r}? There are {', '.join(sorted(MODULES))}")
    found = importlib.import_module(f"{__name__}.{MODULES[name]}")
    return next(value for value in vars(found).values() if isinstance(value, Source) and value.name == name)
