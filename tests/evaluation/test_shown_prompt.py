"""One prompt as the model sees it, in a few lines."""

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

from rich.console import Console

from cagsr.data.in_memory import encode_in_memory
from cagsr.evaluation.shown_prompt import say_prompt
from cagsr.rewards.salience import Column, Pieces, Uniform
from chat_models import CHATML, tokenizer


def shown(prompt, salience=Uniform):
    tokens = tokenizer(CHATML)
    console = Console(file=StringIO(), width=500)
    policy = SimpleNamespace(tokenizer=tokens, eos_ids=[2, 4])
    prompts = encode_in_memory([prompt], tokens)
    say_prompt(console, prompts, policy, salience() if salience is Uniform else salience(prompts))
    return console.file.getvalue().splitlines()


def test_a_conversation_is_shown_with_its_tokens_what_counts_and_its_ends():
    turns = [
        {"role": "system", "content": "say"},
        {"role": "user", "content": "area : riverside ; the world"},
    ]
    count = len(tokenizer(CHATML).apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    assert shown(turns) == [
        "the prompt of row 1 as the model reads it: '<|im_start|>system\\nsay<|im_end|>\\n<|im_start|>user\\n"
        "area : riverside ; the world<|im_end|>\\n<|im_start|>assistant\\n'",
        f"  {count} tokens: '<|im_start|>' 's' 'y' 's' ... 'a' 'n' 't' '\\n'",
        "  to be covered, 2 pieces: area : riverside | world",
        "  a response ends with </s> (2) or <|im_end|> (4)",
    ]


def test_a_text_of_a_column_is_shown_where_it_stands_first():
    (prompt,) = encode_in_memory(["red ; size : tiny ; red"], tokenizer(CHATML))
    column = Column("key")
    listed = replace(prompt, row={"key": ["red", "tiny"]})
    console = Console(file=StringIO(), width=500)
    policy = SimpleNamespace(tokenizer=tokenizer(CHATML), eos_ids=[2])
    say_prompt(console, [listed], policy, column)
    assert "to be covered, 2 pieces: red | tiny\n" in console.file.getvalue()


def test_a_long_text_and_many_pieces_are_cut():
    first, tokens, pieces, _ = shown("say , hello , " * 50)
    assert len(first) < 320
    assert " ... " in first
    assert " ... " in tokens
    assert pieces.startswith("  to be covered, 100 pieces: say | hello | ")
    assert pieces.endswith(" | ...")
    assert shown("the of")[2] == "  to be covered, 0 pieces: nothing"


def test_pieces_that_stand_side_by_side_are_shown_apart():
    prompt = [{"role": "user", "content": "area: riverside\nnear: the world"}]
    assert shown(prompt, Pieces)[2] == "  to be covered, 2 pieces: area: riverside | near: the world"
