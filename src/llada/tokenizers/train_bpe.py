"""A byte-level BPE trained here, by the tokenizers library.

PAD, BOS and EOS have the ids 0, 1 and 2, as in the character vocabulary, and MASK the last one.
"""

import json
from collections.abc import Iterator

from llada.system.errors import UserError
from llada.tokenizers.bpe import MODEL_FILE, NAMES_FILE, VOCABULARY_KEYS, BPETokenizer
from llada.tokenizers.char import BOS, EOS, MASK, PAD

SMALLEST_VOCABULARY = 256 + 4
"""All bytes and the special tokens."""
LARGEST_VOCABULARY = 1 << 22
"""More ids than any text needs: the library sets memory aside for all of them, and aborts if there is not enough."""


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a number of ids that no byte-level BPE is trained with.

    Raises:
        UserError: it is smaller than the bytes need, or too large.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"`vocab_size={vocab_size}` does not hold the 256 bytes and 4 special tokens: choose {SMALLEST_VOCABULARY} "
            "or more."
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(f"`vocab_size={vocab_size}` is too large: choose {LARGEST_VOCABULARY} or less.")


def train_bpe(batches: Iterator[list[str]], vocab_size: int) -> BPETokenizer:
    """Train a byte-level BPE, the same one for the same texts.

    Memory grows with the number of distinct words, not with the text.

    Args:
        batches: the texts, some at a time.
        vocab_size: number of ids, MASK and the other special tokens included; a short text gives fewer.

    Raises:
        UserError: the vocabulary is smaller than the bytes need, or too large.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(batches, trainer)
    model.add_special_tokens([AddedToken(MASK, special=True, normalized=False)])
    names = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "mask_token": MASK}
    files = {
        MODEL_FILE: model.to_str(pretty=True).encode(),
        NAMES_FILE: (json.dumps(names, indent=2) + "\n").encode(),
    }
    ids: list[int] = [model.get_vocab_size(), *(model.token_to_id(token) or 0 for token in (MASK, PAD, EOS))]
    return BPETokenizer(files, dict(zip(VOCABULARY_KEYS, ids, strict=True)))
