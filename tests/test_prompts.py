"""The prompts: their form, what is in them, and which one a context can hold."""

import contextlib
import hashlib
import io
import itertools
import re
import subprocess

import pytest

from hhh_jax import prompts
from hhh_jax.errors import UserError

HHH, SHORT, TWO = (prompts.load(name) for name in ("hhh", "short", "two"))
INTRODUCTION, CONVERSATIONS = prompts.conversations(HHH.text)


def test_sizes_are_the_papers():
    assert len(CONVERSATIONS) == 14 and len(prompts.conversations(SHORT.text)[1]) == 1
    assert 4500 <= len(HHH.text.split()) <= 4700
    assert len(SHORT.text.split()) <= 170
    assert len(prompts.conversations(TWO.text)[1]) == 2 and len(TWO.text.split()) <= 170
    assert all(200 <= len(conversation.split()) <= 400 for conversation in CONVERSATIONS)


@pytest.mark.parametrize("prompt", [HHH, SHORT, TWO], ids=lambda prompt: prompt.name)
def test_turns_alternate_from_human_to_assistant(prompt):
    introduction, conversations = prompts.conversations(prompt.text)
    assert bool(introduction) == (prompt is not TWO) and not re.search("Human:|Assistant:", introduction)
    for conversation in conversations:
        pieces = re.split(r"(?:^|\n\n)(Human|Assistant): ", conversation)
        assert pieces[0] == "" and pieces[1::2] == ["Human", "Assistant"] * (len(pieces) // 4)
        assert all(text.strip() == text != "" for text in pieces[2::2])
        assert len(re.findall("Human:|Assistant:", conversation)) == len(pieces) // 2


@pytest.mark.parametrize("prompt", [HHH, SHORT, TWO], ids=lambda prompt: prompt.name)
def test_text_is_plain(prompt):
    assert prompt.text.isascii() and prompt.text.endswith(f"\n\n{prompts.SEPARATOR}")
    assert not re.search(r"[ \t]\n|\n{4}|\t|\r", prompt.text)
    assert not re.search("`" * 3, re.sub(r"```(python)?\n.*?\n```\n", "", prompt.text, flags=re.DOTALL))


@pytest.mark.parametrize("prompt", [HHH, SHORT], ids=lambda prompt: prompt.name)
def test_no_example_shows_a_refusal(prompt):
    refusal = (
        r"can(no|')t (help|assist|do that|answer|comply|provide|discuss)|won't (help|answer|do)|"
        r"not able to (help|assist)|unable to|I must decline|against my|as an AI|I'm sorry, but|inappropriate"
    )
    assert not re.search(refusal, prompt.text, re.IGNORECASE)


def test_conversations_share_no_sentence():
    sentences = [re.findall(r"[A-Z][^.!?]{30,}[.!?]", conversation) for conversation in CONVERSATIONS]
    every = list(itertools.chain(*sentences))
    assert len(every) > 150 and len(set(every)) == len(every)


def test_the_python_of_the_prompt_does_what_it_says(tmp_path, monkeypatch):
    script, commas, refunds = re.findall(r"```python\n(.*?)```", HHH.text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rows = ["2021-03-14,rent,{}", "2021-03-02,wages,3000", "2021-02-28,milk,-1.10", "2021-03-09,Refund shoes,20.05"]
    table = "\n".join(["date,description,amount", *rows])

    def output(source, rent):
        (tmp_path / "transactions.csv").write_text(table.format(rent))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, "prompt", "exec"), {"__name__": "__main__"})
        return printed.getvalue().splitlines()

    assert output(script, "-1250.00") == ["2021-02 1.10", "2021-03 1250.00"]
    with pytest.raises(ArithmeticError):
        output(script, '"-1,250.00"')
    script = script.replace('amount = Decimal(row["amount"])', commas.strip())
    assert output(script, '"-1,250.00"') == ["2021-02 1.10", "2021-03 1250.00"]
    assert output(script, '"-12,50"') == ["2021-02 1.10", "2021-03 1250"]
    script = script.replace("if amount < 0:", refunds.strip())
    assert output(script, '"-1,250.00"') == ["2021-02 1.10", "2021-03 1229.95"]


def test_the_git_commands_of_the_prompt_rescue_the_commits(tmp_path):
    moving, rescuing = re.findall(r"```\n(git .*?)```", HHH.text, re.DOTALL)

    def git(name, commands):
        config = "-c user.name=x -c user.email=x@example.org -c init.defaultBranch=main -c commit.gpgsign=false"
        script = re.sub(r"^git ", f"git {config} ", commands, flags=re.MULTILINE)
        done = subprocess.run(["sh", "-ec", script], cwd=tmp_path / name, capture_output=True, text=True, check=True)
        return done.stdout.split()

    start = "git init -q\n" + "".join(f"git commit -q --allow-empty -m c{number}\n" for number in range(5))
    for name in ("moved", "lost"):
        (tmp_path / name).mkdir()
        git(name, start)
    git("moved", moving)
    assert git("moved", "git log --format=%s main") == ["c1", "c0"]
    assert git("moved", "git log --format=%s") == ["c4", "c3", "c2", "c1", "c0"]
    git("lost", next(line for line in moving.splitlines() if "reset" in line))
    git("lost", rescuing)
    assert git("lost", "git log --format=%s rescue") == ["c4", "c3", "c2", "c1", "c0"]


def test_the_tag_of_the_card_has_its_25_words():
    first = re.search(r'"(Twenty-two years, every.*?)"', HHH.text)[1]
    new = re.search(r'Make it "(.*?)"', HHH.text)[1]
    second = first.replace("and never a child left behind", new).replace("From Monday, we", "We")
    assert new in second and len(first.split()) == len(second.split()) == 25


def test_a_question_follows_the_prompt_as_its_conversations_do():
    assert prompts.as_question(" Why?\n") == "\n\nHuman: Why?\n\nAssistant:"
    assert prompts.as_question("") == "\n\nHuman:\n\nAssistant:"
    question, answer = re.match(r"Human: (.*?)\n\nAssistant: (.*?)\n\n", CONVERSATIONS[1], re.DOTALL).groups()
    prompt = prompts.join(INTRODUCTION, CONVERSATIONS[:1])
    assert HHH.text.startswith(prompt + prompts.as_question(question) + " " + answer)


def test_stop_strings_end_every_answer_of_the_prompt():
    for answer in re.findall(r"\n\nAssistant: (.*?)(?=\n\nHuman: |\n\n-----)", HHH.text, re.DOTALL):
        assert not any(stop in answer for stop in prompts.STOP_STRINGS + prompts.FORBIDDEN)
    after = re.split(r"\n\nAssistant: ", HHH.text)[1:]
    assert all(any(stop in text for stop in prompts.STOP_STRINGS) for text in after)


def test_names_stand_for_files():
    data = (prompts._HERE / "hhh.txt").read_bytes()
    assert HHH.sha256 == hashlib.sha256(data).hexdigest() and not HHH.is_original
    assert prompts.load(str(prompts._HERE / "hhh.txt")).text == HHH.text


def test_a_users_own_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffHow it went.\r\n\r\n-----\r\n\r\nHuman: Hé?\r\n\r\nAssistant: Ho.\r\n\r\nHuman:".encode())
    prompt = prompts.load(str(file))
    assert prompt.text == "How it went.\n\n-----\n\nHuman: Hé?\n\nAssistant: Ho.\n\n-----"
    assert prompt.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text("You help people.\n")
    assert prompts.load(str(file)).text == "You help people."


def test_the_original_is_known_by_size_and_hash(tmp_path, monkeypatch):
    file = tmp_path / "original.txt"
    file.write_text("any text")
    assert not prompts.load(str(file)).is_original
    monkeypatch.setattr(prompts, "ORIGINAL_BYTES", 8)
    assert not prompts.load(str(file)).is_original
    monkeypatch.setattr(prompts, "ORIGINAL_SHA256", hashlib.sha256(b"any text").hexdigest())
    assert prompts.load(str(file)).is_original


def test_files_that_are_no_prompt_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"no prompt hhhh .*give hhh, short, two or a text file; did you mean hhh\?"):
        prompts.load("hhhh")
    with pytest.raises(UserError, match=r"did you mean .*latin\.txt\?"):
        prompts.load(str(tmp_path / "latin1.txt"))
    with pytest.raises(UserError, match="directory"):
        prompts.load(str(tmp_path))
    with pytest.raises(UserError, match=r"empty\.txt: the prompt is empty"):
        prompts.load(str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match=r"latin\.txt: the prompt is not UTF-8 \(byte 3\)"):
        prompts.load(str(tmp_path / "latin.txt"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HHH.text, None),
        (SHORT.text, None),
        ("Be kind.", ("Be kind.", [])),
        ("Human: a\n\nAssistant: b", ("", ["Human: a\n\nAssistant: b"])),
        ("Hi.\n\nHuman: a\n\nAssistant: b\n\n-----\n\nHuman: c", ("Hi.", ["Human: a\n\nAssistant: b", "Human: c"])),
        ("Human: a ----- b\n\nAssistant: c\n------\n", ("", ["Human: a ----- b\n\nAssistant: c\n------"])),
    ],
    ids=["hhh", "short", "text", "one", "two", "dashes"],
)  # fmt: skip
def test_conversations_are_told_apart(text, expected):
    introduction, conversations = prompts.conversations(text)
    if expected:
        assert (introduction, conversations) == expected
    else:
        assert prompts.join(introduction, conversations) == text


@pytest.mark.parametrize("room", [550, 1100, 5000])
def test_pieces_hold_every_conversation_once_and_as_many_as_fit(room):
    def n_words(text):
        return len(text.split())

    pieces = prompts.pieces(HHH.text, n_words, room)
    parts = [prompts.conversations(piece) for piece in pieces]
    assert all(n_words(piece) <= room for piece in pieces)
    assert all(introduction == INTRODUCTION for introduction, _ in parts)
    assert [conversation for _, some in parts for conversation in some] == CONVERSATIONS
    for (_, some), (_, following) in itertools.pairwise(parts):
        assert n_words(prompts.join(INTRODUCTION, [*some, following[0]])) > room


def test_a_conversation_that_is_longer_than_the_room_is_named():
    longest = max(range(14), key=lambda n: len(CONVERSATIONS[n]))
    room = len(prompts.join(INTRODUCTION, CONVERSATIONS[longest : longest + 1])) - 1
    with pytest.raises(UserError, match=rf"conversation {longest + 1} of the prompt has {room + 1} tokens .* {room}:"):
        prompts.pieces(HHH.text, len, room)


def test_the_context_decides_which_prompt_is_taken():
    assert prompts.choose([HHH, SHORT], [6000, 200], "q7", 2192, 8192) == (HHH, "prompt hhh (6000 tokens)")
    prompt, sentence = prompts.choose([HHH, SHORT], [6000, 200], "q7", 2193, 8192)
    assert prompt is SHORT
    assert sentence == (
        "prompt short (200 tokens) in place of hhh (6000 tokens), which with item q7 (2193 tokens) exceeds the context "
        "of 8192"
    )
    with pytest.raises(UserError, match=r"item q7 has 825 tokens and the prompt hhh 6000, short 200: .* of 1024"):
        prompts.choose([HHH, SHORT], [6000, 200], "q7", 825, 1024)
    with pytest.raises(UserError, match="item q7"):
        prompts.choose([HHH], [6000], "q7", 2193, 8192)
