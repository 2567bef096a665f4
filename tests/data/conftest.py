"""The standard library's pairs and a tokenizer for them, made once for all tests."""

import pytest
from hypothesis import settings

from hhh_jax.data import stdlib, tasks
from hhh_jax.data.records import SPLITS, Pair
from hhh_jax.data.tokenizer import Tokenizer, train_tokenizer

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a bug
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def stdlib_tokenizer() -> Tokenizer:
    """A vocabulary of 1024 from the pretraining documents."""
    return train_tokenizer((document.text for document in stdlib.documents("train")), 1024)


@pytest.fixture(scope="session")
def task_pairs() -> dict[tuple[str, str], list[Pair]]:
    """All pairs by (task, split)."""
    return {(task, split): tasks.pairs(task, split) for task in tasks.TASKS for split in SPLITS}
