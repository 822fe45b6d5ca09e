"""Chat model in this process, decoded greedily: a judge that needs no server."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import resolve_revision

from cagsr.errors import InputError
from cagsr.io.provenance import identity
from cagsr.io.safetensors_only import only_safetensors, reason

__all__ = ["LocalModel"]


class LocalModel:
    """A causal chat model from a directory or the hub; safetensors only, and no code that comes with it is run.

    Messages go through its chat template; a model without one reads their contents with blank lines between.
    Raises InputError for a name that leads nowhere or is no causal language model.
    """

    def __init__(self, name: str, revision: str | None = None, device: torch.device | str = "cpu"):
        self.name = name
        self._revision = resolve_revision(name, revision)  # one commit for all files, and for the record
        # Left open, transformers asks at the terminal whether to run the code.
        where: dict[str, Any] = {"revision": self._revision, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(name, **where)
            only_safetensors(name, config, self._revision)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, **where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                use_safetensors=True,
                dtype="auto",
                attn_implementation=None,  # transformers chooses; config.json may name a kernel to download
                **where,
            )
        except Exception as error:  # libraries raise errors of any class for broken files
            raise InputError(f"metrics.judge.model: {name!r} cannot be loaded: {reason(error)}") from error
        self._model = model.eval().requires_grad_(False).to(device)
        ends, pads = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        # In place of the model's own, whose penalties and beams would not be greedy.
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=model.generation_config.eos_token_id or ends,
            pad_token_id=pads if pads is not None else ends,
        )

    def __call__(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The model's answer, greedy. Raises InputError where the messages do not fit its context."""
        inputs = self._tokenized(messages).to(self._model.device)
        length = inputs["input_ids"].shape[1]
        context = getattr(self._model.config, "max_position_embeddings", None)
        if context is not None and length + max_tokens > context:
            raise InputError(
                f"metrics.judge.model: {length} tokens to judge, and {self.name} has a context of {context}; "
                "choose a model with a longer one"
            )
        written = self._model.generate(**inputs, max_new_tokens=max_tokens)[0, length:]
        return self._tokenizer.decode(written, skip_special_tokens=True)

    def _tokenized(self, messages: Sequence[Mapping[str, str]]) -> Any:
        ids: dict[str, Any] = {"return_token_type_ids": False}
        if not self._tokenizer.chat_template:
            text = "".join(f"{message['content']}\n\n" for message in messages)
            return self._tokenizer(text, return_tensors="pt", **ids)
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", tokenizer_kwargs=ids
            )
        except Exception as error:  # a template is a program, in transformers' sandbox
            raise InputError(
                f"metrics.judge.model: the chat template of {self.name} refuses the conversation: {reason(error)}"
            ) from error

    def describe(self) -> dict[str, str | None]:
        """Name, and revision or hash of the weights."""
        return identity(self.name, self._revision)
