"""A prompt reaches the model as the plain tokenizer writes it: random conversations and texts.

A conversation (system, tools, several turns, empty ones, a prefill, variables of the template) is rendered by templates
of several families, with tokenizers of three kinds, and read as data of a command. Where nobody spells a special token,
the ids are those of plain ``apply_chat_template``; a spelt one gives no control token; offsets cover the text; of the
salience no word lies outside the last turn of the user, and none of its words is missing. A text is read in the same
way. Then a tiny model writes, and what it wrote is given again, as ids and as text: the same tokens, the same
log-probabilities, and one end.

An item is its seed: ``conversations.problems(seed)`` runs it again.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import chat_models
from cagsr.config.schema import Sampling
from cagsr.data.prompts import encode, map_columns
from cagsr.data.readers import rows_of
from cagsr.errors import InputError
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from cagsr.rewards.salience import Uniform
from cagsr.types import Prompt

TITLE = "a prompt is what the plain tokenizer writes; what is spelt in it is text"
PROMISE = 19
COUNT = 6_000

ROLE_BEGUN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "ChatML": chat_models.CHATML,
    "ChatML without line ends": chat_models.CHATML.replace("<|im_end|>\n", "<|im_end|>"),
    "ChatML with tools and variables": (
        "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<call>{{ call | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
        "{{ style }}{% endif %}"
    ),
    "Llama 3": (
        "<s>{% for m in messages %}<|start|>{{ m.role }}<|header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|header|>\n\n{% endif %}"
    ),
    "Gemma": (
        "<s>{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<|start|>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|eot|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
    ),
    "Mistral": (
        "<s>{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "[INST] {{ system if loop.last else '' }}{{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    "Zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "Qwen": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are an assistant.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' and not loop.last else m.content }}"
        "<|im_end|>\n{% endfor %}" + ROLE_BEGUN
    ),
}
TAKES_TOOLS = ("ChatML with tools and variables",)
CONTROL = ["<|start|>", "<|header|>", "<|eot|>", "[INST]", "[/INST]"]
SPELT = ("</s>", "<s>", "<|im_end|>", "<|im_start|>", "<|eot|>", "<pad>")
ENDS = ("</s>", "<s>", "<pad>")
"""Those that are text in a turn of the assistant too, who may write tokens of its own."""

KINDS = [
    (kind, begin, end) for kind in ("bytes", "unigram", "wordpiece") for begin in (0, 1) for end in (0, 1)
]

WORDS = (
    "lyon porto turin ghent paris tea coffee violin cello drums monday friday river lake forest garden window bridge",
    "assistant user system red green blue amber alba bora cleo dario elena fabio neighbours party museum market",
)
CALL = {"type": "function", "function": {"name": "lookup", "arguments": {"place": "spring"}}}
TOOL = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}},
}


@dataclass
class Asked:
    """One prompt as data have it, and how: ``options`` are the template's."""

    tokens: PreTrainedTokenizerFast
    template: str
    row: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> Sequence[Mapping[str, Any]] | None:
        """The turns that are the prompt; None for a text."""
        given = self.row.get("messages") or self.row["prompt"]
        return None if isinstance(given, str) else (given[:-1] if "messages" in self.row else given)

    @property
    def last(self) -> str:
        """The user's last words."""
        if self.messages is None:
            return self.row["prompt"]
        return next(turn["content"] for turn in reversed(self.messages) if turn["role"] == "user")

    @property
    def spells(self) -> bool:
        return any(token in json.dumps(self.row) for token in SPELT)


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The prompts and responses, out of ``count``, that are not what they should be, each with its seed."""
    logging.set_verbosity_error()
    failures = []
    for _ in range(count):
        seed = random.getrandbits(48)
        found, how = _judged(seed)
        failures += [f"seed {seed}: {problem}"[:500] for problem in found]
        advance(**{how: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    named = [f"{sums[how]:,} {how}" for how in ("conversations", "texts", "responses")]
    return ", ".join(named) + f"; {sums['refused']:,} refused with reason"


def problems(seed: int) -> list[str]:
    """What is wrong with the item of this seed."""
    return _judged(seed)[0]


def _judged(seed: int) -> tuple[list[str], str]:
    random = Random(seed)
    if random.random() < 0.1:
        return _given_again(random), "responses"
    asked = _conversation(random) if random.random() < 0.8 else _text(random)
    what = f"{asked.template}, {json.dumps(asked.row, ensure_ascii=False)[:200]}"
    try:
        prompt = _read(asked)
    except InputError as error:
        return [f"{what}: {problem}" for problem in _refusal(asked, str(error))], "refused"
    wrong = _ids(asked, prompt) + _offsets(prompt) + _salient(asked, prompt)
    return [f"{what}: {problem}" for problem in wrong], "texts" if asked.messages is None else "conversations"


# What is asked -----------------------------------------------------------------------------------------------------


@cache
def _tokenizer(kind: str, begin: int, end: int) -> PreTrainedTokenizerFast:
    tokens = chat_models.tokenizer(None, kind, bool(begin), bool(end))
    tokens.add_special_tokens({"additional_special_tokens": CONTROL})
    return tokens


def _said(random: Random, spelt: Sequence[str] = SPELT) -> str:
    """Words, a spelt special token now and then, and line ends and spaces where nobody expects them."""
    said: list[str] = random.choices(" ".join(WORDS).split(), k=random.randint(1, 5))
    if random.random() < 0.15:
        said.insert(random.randrange(len(said) + 1), random.choice(spelt))
    begin, between, end = (
        random.choice(spaces) for spaces in (("", "", "", " ", "\n"), "  \n", ("", "", " ", "\n"))
    )
    return begin + between.join(said) + end


def _conversation(random: Random) -> Asked:
    tokens, template = _tokenizer(*random.choice(KINDS)), random.choice([*TEMPLATES])
    turns: list[dict[str, Any]] = (
        [{"role": "system", "content": _said(random)}] if random.random() < 0.3 else []
    )
    for _ in range(random.randint(0, 2)):
        turns += [{"role": "user", "content": _said(random)}]
        turns += [{"role": "assistant", "content": "" if random.random() < 0.2 else _said(random, ENDS)}]
    turns.append({"role": "user", "content": _said(random)})
    row: dict[str, Any] = {"prompt": turns}
    if random.random() < 0.2:
        turns.append({"role": "assistant", "content": _said(random, ENDS)})
        row = random.choice((row, {"messages": turns}))
    defaults: dict[str, Any] = {}
    if template in TAKES_TOOLS:
        if turns[-1]["role"] == "user" and random.random() < 0.3:
            called = random.choice(({"content": None}, {"content": ""}, {}))
            turns.append({"role": "assistant", "tool_calls": [CALL]} | called)
            turns.append({"role": "tool", "content": _said(random)})
        if random.random() < 0.5:
            row["tools"] = random.choice(([TOOL], json.dumps([TOOL])))
        if random.random() < 0.5:
            own = {"enable_thinking": random.random() < 0.5} | random.choice(({}, {"style": "Be brief."}))
            row["chat_template_kwargs"] = random.choice((own, json.dumps(own)))
        defaults = random.choice(({}, {"enable_thinking": False}, {"style": "Be kind."}))
    return Asked(tokens, template, row, defaults)


def _text(random: Random) -> Asked:
    return Asked(_tokenizer(*random.choice(KINDS)), "no template", {"prompt": _said(random)})


def _read(asked: Asked) -> Prompt:
    """The prompt as a command reads it, for a causal model."""
    asked.tokens.chat_template = TEMPLATES.get(asked.template, asked.tokens.chat_template)
    rows = map_columns(rows_of([asked.row], "d"))
    (prompt,), _ = encode(rows, asked.tokens, chat_template_kwargs=asked.defaults, goes_on=True)
    return prompt


# What is right -----------------------------------------------------------------------------------------------------


def _plain(asked: Asked) -> tuple[str, list[int]]:
    """Text and ids of the plain tokenizer."""
    if asked.messages is None:
        ids = asked.tokens(asked.row["prompt"])["input_ids"]
        return asked.row["prompt"], ids[:-1] if ids[-1] == asked.tokens.eos_token_id else ids
    goes_on = asked.messages[-1]["role"] == "assistant"
    tools, own = (_data(asked.row.get(name)) for name in ("tools", "chat_template_kwargs"))
    options: dict[str, Any] = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    options |= {**asked.defaults, **(own or {})} | ({"tools": tools} if tools else {})
    turns = [{**turn, "content": turn.get("content") or ""} for turn in asked.messages]
    text = asked.tokens.apply_chat_template(turns, tokenize=False, **options)
    ids: Any = asked.tokens.apply_chat_template(turns, tokenize=True, return_dict=False, **options)
    return str(text), ids


def _data(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _refusal(asked: Asked, message: str) -> list[str]:
    """What is wrong with a refusal: the plain tokenizer takes the conversation."""
    if "d row 1: " not in message:
        return [f"refused without a row: {message[:200]}"]
    words: Any = asked.tokens(_unspelt(asked.last), add_special_tokens=False)["input_ids"]
    if "no content tokens" in message and all(word == asked.tokens.unk_token_id for word in words):
        return []
    try:
        _plain(asked)
    except Exception:  # templates are programs: jinja raises whatever they raise
        return []
    return [f"refused without need: {message[:200]}"]


def _ids(asked: Asked, prompt: Prompt) -> list[str]:
    text, ids = _plain(asked)
    if prompt.text != text:
        return [f"its text is {prompt.text!r}, not {text!r}"]
    if not asked.spells:
        return [] if list(prompt.ids) == ids else [f"its ids are {prompt.ids}, not {ids}"]
    harmless = json.dumps(asked.row)
    for token in SPELT:
        harmless = harmless.replace(token, "x" * len(token))
    wanted = _control(
        asked, _plain(Asked(asked.tokens, asked.template, json.loads(harmless), asked.defaults))[1]
    )
    found = _control(asked, prompt.ids)
    return [] if found == wanted else [f"its control tokens are {found}, not {wanted}"]


def _control(asked: Asked, ids: Sequence[int]) -> list[str]:
    added = asked.tokens.added_tokens_decoder
    unknown = asked.tokens.unk_token_id
    return [
        added[token].content for token in ids if token in added and added[token].special and token != unknown
    ]


def _unspelt(text: str) -> str:
    for token in SPELT:
        text = text.replace(token, " ")
    return text


def _offsets(prompt: Prompt) -> list[str]:
    if len(prompt.offsets) != len(prompt.ids):
        return ["not one offset a token"]
    covered = [False] * len(prompt.text)
    before = 0
    for start, end in prompt.offsets:
        if not 0 <= start <= end <= len(prompt.text) or (start < end and start < before - 1):
            return [f"the offset {start, end} is outside the text, or out of order"]
        before = max(before, start)
        covered[start:end] = [True] * (end - start)
    missing = [
        letter
        for letter, there in zip(prompt.text, covered, strict=True)
        if not there and not letter.isspace()
    ]
    return [f"no token covers {missing}"] if missing else []


def _salient(asked: Asked, prompt: Prompt) -> list[str]:
    weights = Uniform(stop_words=()).weigh(prompt)
    kept = {
        place
        for (a, b), weight in zip(prompt.offsets, weights, strict=True)
        if weight
        for place in range(a, b)
    }
    found = Counter("".join(letter if n in kept else " " for n, letter in enumerate(prompt.text)).split())
    wanted = Counter(_unspelt(asked.last).split())
    return [] if found == wanted else [f"salient are {dict(found)}, not {dict(wanted)}"]


# What a model writes -------------------------------------------------------------------------------------------------


@cache
def _policy(template: str, ends: tuple[str, ...]) -> Policy:
    """A tiny model that writes a few words only, so that its text is read as the tokens that it wrote."""
    tokens = chat_models.tokenizer(TEMPLATES[template], "bytes")
    tokens.add_special_tokens({"additional_special_tokens": CONTROL})
    shape: dict[str, Any] = {
        "hidden_size": 20,
        "intermediate_size": 23,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
    }
    config = LlamaConfig(vocab_size=len(tokens), **shape, num_key_value_heads=5, max_position_embeddings=512)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape) * 0.3)
    ended: Any = tokens.convert_tokens_to_ids([*ends, "</s>"])
    written: list[Any] = [
        tokens(f" {word}")["input_ids"] for word in ("hello", "world", "say", "today", "food")
    ]
    allowed = {*ended, _turns_end(Asked(tokens, template, {"prompt": [{"role": "user", "content": "a"}]}))}
    allowed |= {ids[0] for ids in written if len(ids) == 1}
    model.generation_config.suppress_tokens = [token for token in range(len(tokens)) if token not in allowed]
    model.generation_config.eos_token_id = ended
    return load_policy(model, tokens)


def _given_again(random: Random) -> list[str]:
    template = random.choice([*TEMPLATES])
    policy = _policy(template, random.choice(((), ("<|im_end|>",), ("<|eot|>", "<|im_end|>"))))
    asked = Asked(policy.tokenizer, template, {"prompt": [{"role": "user", "content": "hello world"}]})  # type: ignore[arg-type]
    if random.random() < 0.3:
        asked.row["prompt"] = "say hello"
    prompt = _read(asked)
    rollout = policy.sample([prompt], Sampling(candidates=4, max_new_tokens=5), seed=random.getrandbits(31))
    rows = [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]
    wrong = _again(policy, rollout, policy.given_ids([prompt], rows), range(4), "as ids")
    again = policy.given([prompt], rollout.responses, 9, rollout.finished.tolist())
    texts = [ids[mask].tolist() for ids, mask in zip(again.response_ids, again.response_mask, strict=True)]
    same_end = []
    for n, (row, text) in enumerate(zip(rows, texts, strict=True)):
        done = bool(rollout.finished[n])
        if sum(token in policy.eos_ids for token in text) != int(done or len(text) == 1 == len(row)):
            wrong.append(f"{text} ends {'not' if done else ''} once")
        if row[: len(row) - done] != text[: len(text) - done]:
            wrong.append(f"{row} was given as {text}")
        if done and text[-1] != _turns_end(asked):
            wrong.append(f"{text} ends otherwise than a turn")
        same_end += [n] if row == text else []
    wrong += _again(policy, rollout, again, same_end, "as text")
    return [f"{template}, {asked.row}: {problem}" for problem in wrong]


def _again(policy: Policy, rollout: Any, again: Any, rows: Sequence[int], how: str) -> list[str]:
    before, after = policy.logprobs(rollout), policy.logprobs(again)
    wrong = []
    for n in rows:
        mask, length = rollout.response_mask[n], int(again.response_mask[n].sum())
        if not torch.allclose(before[n][mask], after[n][:length], atol=1e-5):
            wrong.append(f"{how} its log-probabilities are {after[n].tolist()}, not {before[n].tolist()}")
        if bool(rollout.finished[n]) != bool(again.finished[n]):
            wrong.append(f"{how} {rollout.response_ids[n].tolist()} is finished: {bool(again.finished[n])}")
    return wrong


def _turns_end(asked: Asked) -> Any:
    """The token that the template writes after an assistant's turn; after a text the tokenizer's own end."""
    if asked.messages is None:
        return asked.tokens.convert_tokens_to_ids("</s>")
    turns = [*map(dict, asked.messages), {"role": "assistant", "content": "fabio"}]
    rest = str(asked.tokens.apply_chat_template(turns, tokenize=False)).rpartition("fabio")[2]
    return asked.tokens(rest, add_special_tokens=False)["input_ids"][0]
