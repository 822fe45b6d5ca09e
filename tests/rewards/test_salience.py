import math
from dataclasses import replace

import pytest
import torch

from cagsr.config import Config
from cagsr.data.words import STOP_WORDS
from cagsr.errors import InputError
from cagsr.rewards.salience import (
    Column,
    Idf,
    Pieces,
    Span,
    Uniform,
    build_salience,
    evidence_of,
)
from cagsr.rewards.segments import segments
from cagsr.types import Prompt, Turn
from evidence import make_evidence, make_prompt, padded


def rollout_of(*prompts, side="left"):
    sizes = [len(prompt.ids) for prompt in prompts]
    width = max(sizes)
    columns = torch.arange(width)
    mask = [columns >= width - size if side == "left" else columns < size for size in sizes]
    attention = torch.zeros(len(prompts), 2, width)
    return make_evidence(attention, group_size=1, prompts=prompts, prompt_mask=torch.stack(mask)).rollout


def pieces(prompt, weights):
    return {
        prompt.text[a:b]: weight for (a, b), weight in zip(prompt.offsets, weights, strict=True) if weight
    }


QUESTION = make_prompt("Describe the Blue Spice | area : riverside", index=0)
SHORT = make_prompt("Say no to cats", index=1)


def test_uniform_weighs_content_words_alike_and_rows_sum_to_one():
    weights = Uniform()(rollout_of(QUESTION, SHORT))
    assert weights.dtype == torch.float32
    assert weights.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    # Describe, Blue, Spice, area, riverside of nine tokens; Say, no, cats of five, left-padded by four.
    assert weights[0].tolist() == pytest.approx([0.2, 0, 0.2, 0.2, 0, 0.2, 0, 0.2, 0])
    assert weights[1].tolist() == pytest.approx([0, 0, 0, 0, 1 / 3, 1 / 3, 0, 1 / 3, 0])


def test_weights_stand_where_the_mask_says_on_either_side():
    left = Uniform()(rollout_of(QUESTION, SHORT))
    right = Uniform()(rollout_of(QUESTION, SHORT, side="right"))
    assert torch.equal(left[1, 4:], right[1, :5])
    assert right[1, 5:].tolist() == [0.0] * 4
    evidence = make_evidence(torch.zeros(1, 2, 5), group_size=1, prompts=[SHORT], salience=left[1:, 4:])
    both = padded(evidence, left=3, right=2)
    assert torch.equal(Uniform()(both.rollout), both.salience)


def test_template_special_tokens_punctuation_and_stop_words_weigh_nothing():
    text = "<s>User: Tell me about the | big, Ocean?</s>"
    prompt = make_prompt(text, content=[(9, 40)])
    assert set(pieces(prompt, Uniform().weigh(prompt))) == {"Tell", "big", "Ocean"}


def test_a_piece_of_a_word_is_judged_by_the_whole_word():
    prompt = Prompt("therapist the", (3, 4, 5), ((0, 3), (3, 9), (9, 13)), (Turn("user", 0, 13),), 0)
    assert Uniform().weigh(prompt) == [1.0, 1.0, 0.0]


def test_a_token_of_a_stop_word_and_another_word_is_content():
    prompt = Prompt("the pub of", (3, 4), ((0, 7), (7, 10)), (Turn("user", 0, 10),), 0)
    assert Uniform().weigh(prompt) == [1.0, 0.0]


def test_stop_words_are_an_option_and_never_swallow_values():
    assert STOP_WORDS.isdisjoint({"no", "not", "yes", "one", "two", "5"})
    assert pieces(SHORT, Uniform(stop_words=["Say", "no"]).weigh(SHORT)) == {"to": 1.0, "cats": 1.0}


def test_prompts_without_content_are_all_zero_and_can_be_counted():
    prompts = SHORT, make_prompt("the | of", index=5), make_prompt("", index=7)
    assert Uniform()(rollout_of(*prompts))[1:].eq(0).all()
    assert Uniform().without_content(prompts) == [5, 7]


def test_idf_weighs_rare_words_more_and_words_of_every_prompt_nothing():
    corpus = [make_prompt(text) for text in ("name blue", "name red", "name blue", "name green the")]
    prompt = make_prompt("name blue green black the")
    expected = {"blue": math.log(5 / 3), "green": math.log(5 / 2), "black": math.log(5)}
    assert pieces(prompt, Idf(corpus).weigh(prompt)) == pytest.approx(expected)
    squared = {word: weight**2 for word, weight in expected.items()}
    assert pieces(prompt, Idf(corpus, power=2).weigh(prompt)) == pytest.approx(squared)
    assert Idf(corpus)(rollout_of(prompt)).sum().item() == pytest.approx(1.0)


def test_idf_of_a_token_that_spans_words_is_that_of_the_rarest():
    corpus = [make_prompt(text) for text in ("red pub", "red", "red", "blue")]
    prompt = Prompt("pub red", (3,), ((0, 7),), (Turn("user", 0, 7),), 0)
    assert Idf(corpus).weigh(prompt) == pytest.approx([math.log(5 / 2)])


def test_idf_to_the_power_zero_is_uniform():
    corpus = [QUESTION, SHORT]
    assert Idf(corpus, power=0).weigh(QUESTION) == Uniform().weigh(QUESTION)


def test_idf_counts_a_word_once_a_prompt():
    corpus = [make_prompt("red red red"), make_prompt("blue")]
    prompt = make_prompt("red blue")
    assert Idf(corpus).weigh(prompt)[:2] == pytest.approx([math.log(3 / 2)] * 2)


@pytest.mark.parametrize(
    ("prompts", "power"), [([], 1.0), ([SHORT], -1.0), ([SHORT], math.nan), ([SHORT], math.inf)]
)
def test_idf_refuses_no_prompts_and_impossible_powers(prompts, power):
    with pytest.raises(InputError, match="salience idf"):
        Idf(prompts, power=power)


@pytest.mark.parametrize("texts", [["red pub"], ["red pub", "pub red the"], ["the", "the"]])
def test_idf_that_weighs_nothing_anywhere_is_refused(texts):
    prompts = [make_prompt(text) for text in texts]
    config = Config.load(None, ["data.task=slots", "reward.salience={kind: idf}"])
    with pytest.raises(
        InputError, match=r"salience idf: none of .* weighs 0: set reward\.salience\.kind: uniform"
    ):
        build_salience(config, prompts)
    build_salience(config, [*prompts, make_prompt("blue")])


CONTEXT = make_prompt("Context: cats sleep. Question: who sleeps? Answer:")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "Question:", "end": "Answer:"}, {"sleeps"}),
        ({"start": "Question:"}, {"sleeps", "Answer"}),
        ({"end": "Question:"}, {"Context", "cats", "sleep"}),
        ({"start": "Context:", "end": "never"}, {"cats", "sleep", "Question", "sleeps", "Answer"}),
        ({"pattern": r"Context: (\w+)"}, {"cats"}),
        ({"pattern": r"sleep\w*"}, {"sleep", "sleeps"}),
        ({"start": "missing"}, set()),
    ],
)
def test_span_keeps_only_the_marked_part(options, words):
    assert set(pieces(CONTEXT, Span(**options).weigh(CONTEXT))) == words


@pytest.mark.parametrize("options", [{}, {"start": ""}, {"start": "a", "pattern": "b"}, {"pattern": "("}])
def test_span_refuses_what_marks_nothing(options):
    with pytest.raises(InputError, match="salience span"):
        Span(**options)


def test_column_weighs_what_the_users_data_lists_stop_words_included():
    prompt = make_prompt("Book: The Blue Spice, the blues, blue", row={"key": ["the blue spice", "blues"]})
    assert pieces(prompt, Column("key").weigh(prompt)) == {
        "The": 1.0,
        "Blue": 1.0,
        "Spice": 1.0,
        "blues": 1.0,
    }


def test_each_text_of_a_column_is_a_piece_wherever_it_stands_and_a_token_is_in_one_alone():
    prompt = make_prompt("Italian family friendly Italian Blue Spice", row={"key": []})
    listed = replace(prompt, row={"key": ["family friendly", "Italian", "blue spice", "spice"]})
    column = Column("key")
    assert column.divide(listed) == [[1, 2], [0, 3], [4, 5]]
    assert column.divide(prompt) == []
    rollout = rollout_of(listed, prompt, side="right")
    found = column.pieces(rollout.prompts, rollout.prompt_mask)
    assert found is not None
    assert found.shape[:2] == (2, 3)
    assert found[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 3], [2, 4], [2, 5]]
    assert not found[1].any()


def test_column_with_an_empty_list_has_no_content():
    prompt = make_prompt("cats", row={"key": []})
    assert Column("key").without_content([prompt]) == [0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"keys": ["cats"]}, "no salience column 'key'; this row's columns: 'keys'"),
        ({"key": "cats"}, "must be a list of words or phrases of the prompt, got str"),
        ({"key": None}, "must be a list of words or phrases of the prompt, got NoneType"),
        ({"key": ["cats", 5]}, "must list words or phrases, got 5"),
        ({"key": ["cats", " "]}, "must list words or phrases, got ' '"),
        ({"key": ["cat"]}, "lists 'cat', which the prompt does not say"),
        ({"key": ["ats"]}, "lists 'ats', which the prompt does not say"),
        ({"key": ["template"]}, "lists 'template', which the prompt does not say"),
    ],
)
def test_column_names_the_row_that_is_wrong(row, reason):
    prompt = make_prompt("template cats", content=[(9, 13)], index=16, row=row)
    with pytest.raises(InputError, match="row 17: ") as error:
        Column("key").weigh(prompt)
    assert reason in str(error.value)


def test_pieces_weigh_the_same_and_share_their_weight_among_their_tokens():
    head = "Describe the place. "
    made = [
        make_prompt(head + f"name: {name}; area: {area}", index=number)
        for number, (name, area) in enumerate((("A B C", "north"), ("D", "south"), ("E", "west")))
    ]
    salience = Pieces(made)
    words = [made[0].text[start:stop] for start, stop in made[0].offsets]
    assert [[words[token] for token in piece] for piece in salience.divide(made[0])] == [
        ["name", ":", "A", "B", "C"],
        ["area", ":", "north"],
    ]
    weights = dict(zip(range(len(words)), salience.weigh(made[0]), strict=True))
    assert [weights[place] for place in range(4)] == [0.0] * 4
    assert sum(weights.values()) == pytest.approx(2)
    assert weights[words.index("A")] == pytest.approx(1 / 5)
    assert weights[words.index("north")] == pytest.approx(1 / 3)


def test_more_pieces_than_allowed_are_taken_together_with_their_neighbours():
    text = "; ".join(f"f{number}: v{number}" for number in range(7))
    divided = Pieces([make_prompt(text)], most=3).divide(make_prompt(text))
    assert [len(piece) for piece in divided] == [9, 9, 3]


def test_evidence_has_the_pieces_where_its_prompt_stands_whichever_side_is_padded():
    made = [make_prompt("a: b; c: d", index=0), make_prompt("e: f", index=1)]
    width = max(len(prompt.ids) for prompt in made) + 2
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in made]).bool()
    given = make_evidence(torch.zeros(4, 3, width), group_size=2, prompts=made, prompt_mask=mask)
    evidence = evidence_of(given.rollout, given.observation, Pieces(made))
    taken = segments(evidence)
    assert taken.shape == (2, 2, width)
    assert taken.sum(-1).tolist() == [[3, 3], [3, 0]]
    first = int(mask[0].long().argmax())
    assert taken[0, 0].nonzero().flatten().tolist() == [first, first + 1, first + 2]
    assert evidence_of(given.rollout, given.observation, Uniform()).pieces is None


# Conversations ------------------------------------------------------------------------------------------------

TALK = "S: be brief U: name cats A: cats dogs U: and dogs"
TURNS = (Turn("system", 3, 11), Turn("user", 15, 24), Turn("assistant", 28, 37), Turn("user", 41, 49))


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ((), ["dogs"]),
        (("last-user",), ["dogs"]),
        (("user",), ["name", "cats", "dogs"]),
        (("system", "last-user"), ["brief", "dogs"]),
        (("assistant",), ["cats", "dogs"]),
        (("tool",), []),
    ],
)
def test_the_last_user_turn_counts_and_others_on_demand(roles, words):
    talk = replace(make_prompt(TALK), turns=TURNS)
    settings = {"roles": roles} if roles else {}
    idf = Idf([make_prompt("x")], stop_words=STOP_WORDS, **settings)
    span = Span(pattern=r"[a-z]+", **settings)
    for salience in (Uniform(**settings), idf, span):
        weights = zip(talk.offsets, salience.weigh(talk), strict=True)
        assert [talk.text[slice(*span)] for span, weight in weights if weight] == words


def test_a_column_may_list_what_anybody_said_but_no_template():
    talk = replace(make_prompt(TALK, row={"key": ["brief", "cats"]}), turns=TURNS)
    weights = zip(talk.offsets, Column("key").weigh(talk), strict=True)
    assert [talk.text[slice(*span)] for span, weight in weights if weight] == ["brief", "cats", "cats"]
    with pytest.raises(InputError, match="lists 'U', which the prompt does not say"):
        Column("key").weigh(replace(talk, row={"key": ["U"]}))


def test_the_config_names_the_roles():
    given = ["data.task=slots", "reward.salience.roles=[system, user]"]
    salience = build_salience(Config.load(None, given), [SHORT])
    assert isinstance(salience, Uniform)
    assert list(salience.roles) == ["system", "user"]
    default = build_salience(Config.load(None, given[:1]), [SHORT])
    assert isinstance(default, Uniform)
    assert list(default.roles) == ["last-user"]
