"""Templates are data: a user's file replaces what it names, and says where it is wrong."""

import pytest

from hhh_jax.errors import UserError
from hhh_jax.evals import templates


def test_a_users_file_replaces_what_it_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[truthfulqa]\ndialogue = "Q: {question} A:"\n')
    mine, ours = templates.load(str(path)), templates.load()
    assert mine["truthfulqa"]["dialogue"] == "Q: {question} A:"
    mine["truthfulqa"]["dialogue"] = ours["truthfulqa"]["dialogue"]
    assert mine == ours


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[truthfulqa]\ndialog = "{question}"\n', "truthfulqa.dialog: no such template; there are hhh.bare"),
        ('[truthfulqa]\ndialogue = "{q}"\n', r"truthfulqa.dialogue: must have exactly \['question'\]"),
        ('[truthfulqa]\ndialogue = "{question"\n', "truthfulqa.dialogue: "),
        ("[truthfulqa]\ndialogue = 3\n", "truthfulqa must be a table of texts"),
        ("[truthfulqa\n", "mine.toml: "),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        templates.load(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"no\.toml: cannot be read"):
        templates.load("no.toml")
