import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax.data.tokenizer import END_OF_CONTEXT, PAD, Tokenizer, train_tokenizer
from hhh_jax.errors import UserError

TEXTS = [f"def f{i}(x):\n    return x + {i}  # naïve café, {i * 7919}\n" for i in range(200)]
TOKENIZER = train_tokenizer(TEXTS, 300)
BYTES_ONLY = train_tokenizer([], 258)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES_ONLY], ids=["300", "258"])
def test_round_trip_of_any_unicode(tokenizer):
    special = {tokenizer.eoc_id, tokenizer.pad_id}

    @given(st.text() | st.sampled_from([END_OF_CONTEXT, PAD, f"a{END_OF_CONTEXT}{PAD} b"]))
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not special & set(ids.tolist())
        assert np.all((ids >= 0) & (ids < tokenizer.vocab_size))

    check()


@given(st.lists(st.text(), max_size=5))
def test_a_batch_is_its_texts_one_by_one(texts):
    for ids, text in zip(TOKENIZER.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, TOKENIZER.encode(text))


def test_ids():
    ids = TOKENIZER.encode("return x")
    assert ids.dtype == np.int32
    assert len(ids) < len("return x")
    assert TOKENIZER.encode("").shape == (0,)
    assert TOKENIZER.eoc_id != TOKENIZER.pad_id
    assert TOKENIZER.decode([TOKENIZER.eoc_id, *ids, TOKENIZER.pad_id]) == "return x"
    # With no merges every byte is a token.
    assert len(BYTES_ONLY.encode("naïve")) == len("naïve".encode())


def test_delimiter_in_text_stays_text_after_loading():
    loaded = Tokenizer.from_json(TOKENIZER.to_json())
    ids = loaded.encode(f"x{END_OF_CONTEXT}y")
    np.testing.assert_array_equal(ids, TOKENIZER.encode(f"x{END_OF_CONTEXT}y"))
    assert loaded.eoc_id not in ids
    assert len(ids) > 3


def test_saved_and_loaded_is_the_same():
    loaded = Tokenizer.from_json(TOKENIZER.to_json())
    assert loaded.sha == TOKENIZER.sha
    assert (loaded.vocab_size, loaded.eoc_id, loaded.pad_id) == (300, TOKENIZER.eoc_id, TOKENIZER.pad_id)
    np.testing.assert_array_equal(loaded.encode(TEXTS[7]), TOKENIZER.encode(TEXTS[7]))


def test_training_is_deterministic_and_depends_on_the_text():
    assert train_tokenizer(iter(TEXTS), 300).sha == TOKENIZER.sha
    assert train_tokenizer([text.upper() for text in TEXTS], 300).sha != TOKENIZER.sha


@pytest.mark.parametrize("size", [257, 65537, 0])
def test_size_out_of_range(size):
    with pytest.raises(UserError, match=r"258 \.\. 65536"):
        train_tokenizer(TEXTS, size)


def test_too_little_text():
    with pytest.raises(UserError, match=r"only .* of 1000 tokens"):
        train_tokenizer(["abab abab"], 1000)


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_not_a_tokenizer(text):
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.from_json(text)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES_ONLY], ids=["300", "258"])
def test_bytes_of_tokens_are_those_of_the_text(tokenizer):
    spellings = tokenizer.token_bytes()
    assert spellings[tokenizer.eoc_id] == spellings[tokenizer.pad_id] == b""
    assert set(range(256)) <= {spelling[0] for spelling in spellings if len(spelling) == 1}

    @given(st.text())
    def check(text):
        assert b"".join(spellings[i] for i in tokenizer.encode(text)) == text.encode()

    check()


def test_bytes_of_tokens_that_were_added_as_they_are():
    import tokenizers

    bpe = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    bpe.add_tokens([tokenizers.AddedToken("   ", normalized=False)])
    tokenizer = Tokenizer(bpe)
    ids = tokenizer.encode("a   b")
    assert b"".join(tokenizer.token_bytes()[i] for i in ids) == b"a   b" and tokenizer.vocab_size - 1 in ids
    bpe.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(UserError, match="byte-level"):
        Tokenizer(bpe).token_bytes()
