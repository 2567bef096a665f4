"""Byte-level BPE, trained on the run's own text and stored with the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from hhh_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers

END_OF_CONTEXT = "<|endofcontext|>"
PAD = "<|pad|>"
MIN_VOCAB_SIZE = 256 + 2
MAX_VOCAB_SIZE = 2**16
_BATCH = 1024  # texts; the library keeps a hundred bytes a token until a batch is through


class Tokenizer:
    """Text to token ids and back; any Unicode text survives the round trip.

    `eoc_id` is the document delimiter of language modeling and the end-of-context token of preference models
    (paper C.4); `pad_id` fills rows. No text encodes to either: their spellings are encoded as plain text.
    """

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size()
        self.eoc_id, self.pad_id = (_special_id(bpe, token) for token in (END_OF_CONTEXT, PAD))

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [T]; nothing is added at either end."""
        return np.asarray(self._bpe.encode(text).ids, dtype=np.int32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """`encode` of every text, in parallel."""
        return [
            np.asarray(encoding.ids, dtype=np.int32)
            for start in range(0, len(texts), _BATCH)
            for encoding in self._bpe.encode_batch(texts[start : start + _BATCH])
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; the two special tokens decode to nothing, broken UTF-8 to U+FFFD."""
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self) -> list[bytes]:
        """What each id decodes to, whatever stands around it; nothing for the two special tokens.

        Raises UserError if the tokenizer is not a byte-level one.
        """
        from tokenizers import decoders

        if not isinstance(self._bpe.decoder, decoders.ByteLevel):
            raise UserError("to sample takes a byte-level tokenizer, and this one is not")
        byte_of = _bytes_by_letter()
        spellings = [b""] * self.vocab_size
        for spelling, i in self._bpe.get_vocab().items():
            if i not in (self.eoc_id, self.pad_id):
                in_bytes = all(letter in byte_of for letter in spelling)  # added tokens are spelled as they are
                spellings[i] = bytes(byte_of[letter] for letter in spelling) if in_bytes else spelling.encode()
        return spellings

    def to_json(self) -> str:
        """The whole tokenizer as one JSON string, the format of Hugging Face `tokenizers`."""
        return self._bpe.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Inverse of `to_json`. Raises UserError if `text` isn't such a tokenizer."""
        import tokenizers

        try:
            bpe = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"not a tokenizer in the format of Hugging Face tokenizers: {error}") from None
        return cls(bpe)

    @property
    def sha(self) -> str:
        """SHA-256 (hex) of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _bytes_by_letter() -> dict[str, int]:
    """The byte behind each letter of byte-level spellings: printable ones are themselves, the others follow U+00FF."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _special_id(bpe: tokenizers.Tokenizer, token: str) -> int:
    token_id = bpe.token_to_id(token)
    if token_id is None:
        raise UserError(f"the tokenizer has no token {token}; use one that hhh_jax trained")
    return token_id


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` ids (258 .. 65536) on `texts`.

    The special tokens take ids 0 and 1, the 256 bytes the next; the rest are merges. Training is
    deterministic. Raises UserError if `vocab_size` is out of range or the text is too little for so many
    merges.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size must lie in {MIN_VOCAB_SIZE} .. {MAX_VOCAB_SIZE}, not {vocab_size}")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_CONTEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise UserError(
            f"the text gives only {bpe.get_vocab_size()} of {vocab_size} tokens; "
            "give the tokenizer more text or a smaller vocab_size"
        )
    return Tokenizer(bpe)
