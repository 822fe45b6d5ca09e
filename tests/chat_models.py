"""Tokenizers with a chat template, and of every kind that treats special tokens in a way of its own."""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "name : The Vaults ; area : riverside ; food : french",
    "say hello to the world today < > / | _ [ ] s im start end sep",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>", "<think>"]


def tokenizer(chat_template=None, kind="bytes", begin=False, end=False) -> PreTrainedTokenizerFast:
    """``bytes``: byte-level BPE; ``unigram``: SentencePiece with a space before the text; ``wordpiece``: lower case.

    ``begin``, ``end``: the tokenizer adds ``<s>``, ``</s>`` to every text.
    """
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    made.add_special_tokens([AddedToken("<|mask|>", lstrip=True, special=True)])
    around = ("<s> " if begin else "") + "$A" + (" </s>" if end else "")
    made.post_processor = processors.TemplateProcessing(
        around, special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=chat_template,
    )
