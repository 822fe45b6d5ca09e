"""Remarks on how prompts are read, where that may not be what their author meant: each is said once, at the start."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import loopcontrols
from transformers import PreTrainedTokenizerBase

from cagsr.data.chat_template import render
from cagsr.data.make_prompt import SpecialTokens, added_end, is_conversation
from cagsr.types import Prompt

__all__ = ["Remarks"]

OF_TEMPLATES = ("tools", "chat_template_kwargs")
MESSAGES = "give conversations as lists of {role, content}"


@dataclass
class Remarks:
    """What was seen of the prompts that were added; `warnings` and `notes` say it in sentences."""

    tokenizer: PreTrainedTokenizerBase
    special_tokens: SpecialTokens
    goes_on: bool
    plain: int = 0
    prefilled: int = 0
    spelt: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    unwritten: dict[str, int] = field(default_factory=dict)
    no_texts: list[str] = field(default_factory=list)

    def add(self, prompt: Prompt, place: str) -> None:
        """Take note of a prompt; ``place`` says where its author finds it."""
        given = prompt.row["prompt"]
        self.plain += not is_conversation(given)
        self.prefilled += is_conversation(given) and given[-1]["role"] == "assistant"
        for name in self._unread(prompt):
            self.unread[name] = self.unread.get(name, 0) + 1
        for name in self._unwritten(prompt):
            self.unwritten[name] = self.unwritten.get(name, 0) + 1
        reference = prompt.row.get("reference", prompt.row.get("completion"))
        if reference is not None and not isinstance(reference, str):
            self.no_texts.append(f"{place}: {reference!r:.40}")
        said = [turn for turn in prompt.turns if turn.role != "assistant"]  # it may write tokens of its own
        spelt = [
            span
            for span in prompt.spelt
            if any(turn.start < span[1] and span[0] < turn.stop for turn in said)
        ]
        if spelt:
            self.spelt.append(f"{place}: {prompt.text[slice(*spelt[0])].strip()!r}")

    def warnings(self) -> list[str]:
        """What may not be meant, a line each."""
        found = []
        if self.spelt:
            read = "read as text" if self.special_tokens == "text" else "read as control tokens"
            if self.special_tokens == "control":
                read += " in plain texts and as text in conversations"
            elif self.plain:
                read += f"; if a chat template wrote them, {MESSAGES}"
            if self.special_tokens == "text" and self.plain:
                read += ", or set data.special_tokens: control"
            found.append(
                f"special tokens are spelt in {len(self.spelt)} prompts (first: {self.spelt[0]}) and never have to be "
                f"covered; they are {read}"
            )
        if self.unread:
            names = ", ".join(f"{name} ({count} prompts)" for name, count in self.unread.items())
            found.append(
                f"nothing reads {names}: plain texts have no template, and a chat template reads the variables that it "
                "names; correct the name, or leave it out"
            )
        if self.unwritten:
            names = " and ".join(f"{count} turns of {name}" for name, count in self.unwritten.items())
            found.append(
                f"the chat template writes nothing of {names}, so the model does not read them; say it in a turn of "
                "the user, or give the tokenizer a template that writes them"
            )
        if self.no_texts:
            found.append(
                f"the reference of {len(self.no_texts)} prompts is no text (first: {self.no_texts[0]}), and they count "
                "as prompts without one; write it as text, or several texts as a list in a column 'references'"
            )
        if not self.plain or not self.goes_on or self.special_tokens == "verbatim":
            return found
        if self.tokenizer.chat_template and not self.spelt:
            found.append(
                f"the model has a chat template, and {self.plain} prompts are plain texts, which it is not applied to; "
                f"for a chat model {MESSAGES}"
            )
        if self._adds_end():
            found.append(
                f"the tokenizer ends every text with {self.tokenizer.eos_token!r}, which is left out of prompts: the "
                "response goes on where they end"
            )
        return found

    def notes(self) -> list[str]:
        """What is as TRL has it and may surprise, a line each."""
        if not self.prefilled:
            return []
        return [f"{self.prefilled} prompts end in a turn of the assistant, which the response continues"]

    def _unread(self, prompt: Prompt) -> list[str]:
        """What a row or the config gives the chat template and that it does not name; of a plain text all of it."""
        if not is_conversation(prompt.row["prompt"]):
            return [name for name in OF_TEMPLATES if prompt.row.get(name)]
        if self._variables is None:
            return []
        return [name for name in prompt.template if name not in self._variables]

    def _unwritten(self, prompt: Prompt) -> list[str]:
        """The role of each turn of which the chat template writes nothing, or not the calls of tools."""
        given = prompt.row["prompt"]
        if not is_conversation(given):
            return []
        found = []
        there = Counter(turn.role for turn in prompt.turns)
        said = Counter(turn["role"] for turn in given if turn.get("content"))
        for n, turn in enumerate(given):
            if turn.get("content") and there[turn["role"]] < said[turn["role"]]:
                # What the template rewrites has no place in the text either; but then other words give another text.
                changed = [*given[:n], {**turn, "content": f"{turn['content']} x"}, *given[n + 1 :]]
                with suppress(ValueError):  # it refuses the other words, so it reads them
                    if render(changed, self.tokenizer, **prompt.template)[0] == prompt.text:
                        found.append(f"the {turn['role']}")
            elif turn.get("tool_calls") and "tool_calls" not in self._source():
                found.append(f"the {turn['role']} that call tools")
        return found

    @cached_property
    def _variables(self) -> set[str] | None:
        """The variables that the chat template names; None where jinja alone cannot read it."""
        try:
            return meta.find_undeclared_variables(
                Environment(extensions=[loopcontrols]).parse(self._source())
            )
        except TemplateError:
            return None

    def _source(self) -> str:
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else "\n".join((template or {}).values())

    def _adds_end(self) -> bool:
        encoded = self.tokenizer("a", return_offsets_mapping=True, verbose=False)
        return added_end(tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]), self.tokenizer)
