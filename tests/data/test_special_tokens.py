"""Special tokens that data spell are text, never control tokens, and never have to be covered."""

import pytest

from cagsr.data.in_memory import encode_in_memory
from cagsr.data.prompts import encode, map_columns
from cagsr.data.readers import rows_of
from cagsr.errors import InputError
from cagsr.rewards.salience import Uniform
from chat_models import CHATML, SPECIAL, tokenizer

KINDS = ("bytes", "unigram", "wordpiece")


def encoded(tokens, *prompts, **options):
    return encode(map_columns(rows_of([{"prompt": prompt} for prompt in prompts], "d")), tokens, **options)


def pieces(tokens, prompt):
    return tokens.convert_ids_to_tokens(prompt.ids)


def covered(prompt, **settings):
    weights = zip(prompt.offsets, Uniform(**settings).weigh(prompt), strict=True)
    kept = {place for (a, b), weight in weights if weight for place in range(a, b)}
    return "".join(letter if place in kept else " " for place, letter in enumerate(prompt.text)).split()


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_text_spells_is_text(kind):
    tokens = tokenizer(kind=kind, begin=True, end=True)
    (prompt,), report = encoded(tokens, "<s>say hello </s>")
    (mere,), _ = encoded(tokens, "say hello")
    assert prompt.ids.count(tokens.bos_token_id) == prompt.ids.count(tokens.eos_token_id) == 1
    assert (prompt.ids[0], prompt.ids[-1]) == (tokens.bos_token_id, tokens.eos_token_id)
    assert covered(prompt) == covered(mere) == ["say", "hello"]
    # Offsets are those of the text as it is.
    places = {place for a, b in prompt.offsets for place in range(a, b)}
    assert places | {prompt.text.index(" "), prompt.text.rindex(" ")} == set(range(len(prompt.text)))
    assert report.remarks[0].startswith("special tokens are spelt in 1 prompts (first: d row 1: '<s>')")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_turn_spells_is_text_and_the_templates_own_tokens_stay(kind):
    tokens = tokenizer(CHATML, kind=kind)
    (prompt,), _ = encoded(tokens, user("say <|im_end|> hello<|im_start|>system"))
    named = [piece for piece in pieces(tokens, prompt) if piece in ("<|im_start|>", "<|im_end|>")]
    assert named == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    places = [
        span
        for span, piece in zip(prompt.offsets, pieces(tokens, prompt), strict=True)
        if piece.startswith("<|")
    ]
    assert [prompt.text[a:b] for a, b in places] == named
    assert covered(prompt) == ["say", "hello", "system"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", ["say hello", "  say hello\n", "< s > im_end |", "áé ｆｕｌｌ", "a <thing>"]
)
def test_without_special_tokens_the_tokens_are_those_of_the_whole_text(kind, content):
    tokens = tokenizer(CHATML, kind=kind)
    (prompt,), _ = encoded(tokens, user(content))
    whole = tokens(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
    assert list(prompt.ids) == whole["input_ids"]
    assert list(prompt.offsets) == whole["offset_mapping"]


@pytest.mark.parametrize("kind", KINDS)
def test_around_a_token_that_is_spelt_all_other_tokens_stay_as_they_were(kind):
    tokens = tokenizer(CHATML, kind=kind)
    (prompt,), _ = encoded(tokens, user("say </s> hello <|mask|>the world"))
    (other,), _ = encoded(tokens, user("say </x> hello"))

    def before_and_after(prompt, start, end):
        places = [prompt.text.index(start), prompt.text.index(end)]
        zipped = list(zip(prompt.ids, prompt.offsets, strict=True))
        return [token for token, (_, b) in zipped if b <= places[0]], [
            token for token, (a, b) in zipped if a >= places[1] and a < b
        ]

    assert before_and_after(prompt, "</s>", "<|im_end|>") == before_and_after(other, "</x>", "<|im_end|>")
    assert "<|mask|>" not in pieces(tokens, prompt)


def test_an_assistants_turn_may_hold_its_own_tokens_but_none_that_ends_a_turn():
    tokens = tokenizer(CHATML)
    turns = [*user("say"), {"role": "assistant", "content": "<think>hello<|im_end|></s>"}]
    (prompt,), _ = encoded(tokens, turns)
    assert pieces(tokens, prompt).count("<think>") == 1
    assert pieces(tokens, prompt).count("<|im_end|>") == 1
    assert tokens.eos_token_id not in prompt.ids
    assert prompt.text.endswith("<think>hello<|im_end|></s>")
    assert covered(prompt, roles=["assistant"]) == ["hello"]
    (from_user,), _ = encoded(tokens, user("<think>hello"))
    assert "<think>" not in pieces(tokens, from_user)


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_are_read_on_demand_once_and_are_never_covered(kind):
    tokens = tokenizer(CHATML, kind=kind, begin=True, end=True)
    rendered = "<s><|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\n</s>"
    (prompt,), report = encoded(tokens, rendered, special_tokens="control")
    named = [piece for piece in pieces(tokens, prompt) if piece in SPECIAL and piece != "<unk>"]
    assert named == ["<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "</s>"]
    assert covered(prompt) == ["user", "say", "hello", "assistant"]
    assert "read as control tokens in plain texts" in report.remarks[0]


def test_the_end_that_a_tokenizer_adds_is_left_out_where_the_response_goes_on_and_said():
    tokens = tokenizer(end=True)
    (causal,), report = encoded(tokens, "say hello", goes_on=True)
    (encoder,), quiet = encoded(tokens, "say hello")
    assert encoder.ids == (*causal.ids, tokens.eos_token_id)
    assert tokens.eos_token_id not in causal.ids
    assert len(causal.ids) == len(causal.offsets)
    assert report.remarks == [
        "the tokenizer ends every text with '</s>', which is left out of prompts: the response goes on where they end"
    ]
    assert quiet.remarks == []


def test_plain_texts_on_a_chat_model_are_said():
    (said,) = encoded(tokenizer(CHATML), "say hello", "say", goes_on=True)[1].remarks
    assert said.startswith("the model has a chat template, and 2 prompts are plain texts")
    assert encoded(tokenizer(CHATML), user("say hello"), goes_on=True)[1].remarks == []
    assert encoded(tokenizer(), "say hello", goes_on=True)[1].remarks == []


def test_in_memory_it_is_the_same_unless_a_trainer_reads_otherwise():
    tokens = tokenizer(CHATML, begin=True, end=True)
    with pytest.warns(
        UserWarning, match=r"special tokens are spelt in 1 prompts \(first: prompts\[0\]: '<s>'"
    ):
        (prompt,) = encode_in_memory(["<s>say hello"], tokens)
    assert list(prompt.ids).count(tokens.bos_token_id) == 1
    said = []
    (exact,) = encode_in_memory(["<s>say hello"], tokens, verbatim=True, goes_on=True, warn=said.append)
    assert list(exact.ids) == tokens("<s>say hello")["input_ids"]
    assert said[0].endswith("give conversations as lists of {role, content}")
    assert covered(exact) == ["say", "hello"]


def test_columns_of_tools_and_variables_count_in_memory_too():
    template = CHATML + "{% if calm is defined and calm %}calm{% endif %}"
    columns = {"chat_template_kwargs": [{"calm": False}, None]}
    texts = [
        prompt.text[-4:]
        for prompt in encode_in_memory(
            [user("say")] * 2, tokenizer(template), columns=columns, template={"calm": True}
        )
    ]
    assert texts == ["ant\n", "calm"]
    alike = encode_in_memory([user("say")], tokenizer(template), columns=columns, verbatim=True)
    assert alike[0].text.endswith("assistant\n")


def test_letters_that_stand_for_special_tokens_are_refused_beside_one():
    (kept,), _ = encoded(tokenizer(), "say \U00013000")
    assert kept.text == "say \U00013000"
    with pytest.raises(InputError, match="d row 1: it has hieroglyphs beside a special token"):
        encoded(tokenizer(), "<s> \U00013000")


CHATTY = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if thinking %}!{% endif %}\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("row", "kwargs", "unread"),
    [
        ({"prompt": "hello", "tools": [{"name": "f"}]}, {}, "tools (1 prompts)"),
        ({"prompt": [{"role": "user", "content": "hello"}]}, {"thinkin": False}, "thinkin (1 prompts)"),
        ({"prompt": [{"role": "user", "content": "hello"}]}, {"thinking": True}, None),
        (
            {"prompt": [{"role": "user", "content": "hello"}], "tools": [{"name": "f"}]},
            {},
            "tools (1 prompts)",
        ),
    ],
)
def test_what_no_template_reads_is_said(row, kwargs, unread):
    words = tokenizer(CHATTY)
    _, report = encode(map_columns(rows_of([row], "d")), words, chat_template_kwargs=kwargs)
    said = [line for line in report.warnings() if line.startswith("nothing reads")]
    assert said == [] if unread is None else said[0].startswith(f"nothing reads {unread}: ")
