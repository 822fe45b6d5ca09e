"""Word-level tokenizer of a generated task: its vocabulary is closed, so no word is ever unknown."""

from typing import TYPE_CHECKING

from cagsr.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def tokenizer(task: Task, kind: str | None = None) -> "PreTrainedTokenizerFast":
    """The tokenizer of ``task`` for an ``encoder-decoder`` or a ``causal`` model (default: the task's kind).

    An encoder-decoder's texts end with ``</s>``, as T5's do; a causal model's do not, so that a prompt can be
    continued. ``<pad>`` (0), ``</s>`` (1) and ``<unk>`` (2) are three tokens.
    """
    # transformers imports torch, and rows must be drawn without it
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    found = {piece for text in task.vocabulary_texts() for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = {word: number for number, word in enumerate([PAD, EOS, UNKNOWN, *sorted(found)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = split
    if (kind or task.kind) == "encoder-decoder":
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        return_token_type_ids=False,
        model_input_names=["input_ids", "attention_mask"],
    )
