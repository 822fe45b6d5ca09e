"""Where a response ends: every end token counts, and a given response ends as the model's own would."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cagsr.data.in_memory import encode_in_memory
from cagsr.data.make_prompt import text_ids
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from chat_models import TEXTS, TURNS, chat_model, chat_tokenizer

EOS = 1


def made(listed: list[int] | None = None, **changes) -> tuple[Policy, int]:
    """A policy whose generation config lists ``listed``, and the token that its template ends turns with."""
    words = chat_tokenizer(**changes)
    turn = words.convert_tokens_to_ids("<|im_end|>")
    return load_policy(chat_model(eos_token_id=[EOS, turn] if listed is None else listed), words), turn


def prompts_of(policy: Policy):
    return encode_in_memory([TURNS, "city lyon"], policy.tokenizer)


def test_a_given_response_ends_as_the_model_ends_its_answer_to_that_prompt():
    policy, turn = made()
    assert policy.eos_ids == [EOS, turn]
    rollout = policy.given(prompts_of(policy), ["comes to", "comes to"], limit=50)
    written = policy.tokenizer("comes to", add_special_tokens=False)["input_ids"]
    assert rollout.response_ids.tolist() == [[*written, turn], [*written, EOS]]
    assert rollout.finished.tolist() == [True, True]


def test_an_answer_given_again_has_the_tokens_and_the_log_probabilities_it_was_sampled_with():
    policy, turn = made()
    prompt = prompts_of(policy)[:1]
    written = policy.tokenizer("tea, porto", add_special_tokens=False)["input_ids"]
    sampled = policy.given_ids(prompt, [[*written, turn]])
    given = policy.given(prompt, sampled.responses, limit=50)
    assert torch.equal(given.response_ids, sampled.response_ids)
    assert torch.equal(policy.logprobs(given), policy.logprobs(sampled))
    ids = torch.tensor([[*prompt[0].ids, *written, turn]])
    plain = policy.model(input_ids=ids).logits[0, -len(written) - 2 : -1].double().log_softmax(-1)
    expected = plain[range(len(written) + 1), [*written, turn]]
    torch.testing.assert_close(policy.logprobs(given)[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_several_responses_to_each_prompt_end_each_as_their_own_prompt_asks():
    policy, turn = made()
    rollout = policy.given(prompts_of(policy), ["a", "lyon", "c", "d"], limit=50)
    last = rollout.response_ids.gather(1, rollout.lengths[:, None] - 1)
    assert last.squeeze(1).tolist() == [turn, turn, EOS, EOS]


def test_the_token_that_the_template_ends_turns_with_ends_a_response_although_no_config_lists_it():
    policy, turn = made(listed=[EOS])
    assert policy.eos_ids == [EOS, turn]
    assert policy.given(prompts_of(policy)[:1], ["a"], limit=9).response_ids[0, -1] == turn


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        # What always follows here begins the next answer and ends nothing.
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}<|im_start|>",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_ends_turns_with_no_token_leaves_the_tokenizers_end(template):
    policy, _ = made(listed=[EOS], template=template)
    assert policy.eos_ids == [EOS]
    assert policy.encode(["a"])[0][-1] == EOS


def test_a_conversation_rendered_by_others_ends_as_a_conversation():
    policy, turn = made()
    text = policy.tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    with pytest.warns(UserWarning, match="they are read as control tokens"):
        prompts = encode_in_memory([text], policy.tokenizer, verbatim=True)
    assert policy.given(prompts, ["a"], limit=9).response_ids[0, -1] == turn


def test_a_response_that_was_cut_off_gets_no_end():
    policy, turn = made()
    prompts = prompts_of(policy)[:1]
    written = policy.tokenizer("comes to", add_special_tokens=False)["input_ids"]
    rollout = policy.given(prompts, ["comes to", "comes to", ""], limit=50, finished=[True, False, False])
    rows = [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]
    # Without any token there would be no query to read.
    assert rows == [[*written, turn], written, [turn]]
    assert rollout.finished.tolist() == [True, False, False]
    assert policy.given(prompts, ["comes to"], limit=len(written)).finished.tolist() == [False]


@pytest.mark.parametrize("text", ["hello </s> world", "hello</s>", "</s>", "a<|im_end|>b <pad>"])
def test_special_tokens_in_a_response_are_text_and_it_ends_once(text):
    policy, turn = made()
    (row,) = policy.encode([text], prompts_of(policy)[:1])
    assert row[-1] == turn
    assert not {0, EOS, turn, turn - 1} & set(row[:-1])
    assert policy.tokenizer.decode(row[:-1]).lstrip() == text


@pytest.fixture(scope="module")
def unigram() -> PreTrainedTokenizerFast:
    """As T5's: its model has ``</s>`` as a word, which it finds wherever it is spelt."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=90,
            special_tokens=special,
            unk_token="<unk>",
            initial_alphabet=list("</>"),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_special_token_that_a_unigram_model_knows_as_a_word_is_spelt_out(unigram):
    plain, spelt = (text_ids(text, unigram, special=False) for text in ("hello world", "hello </s> world"))
    assert unigram.decode(plain) == "hello world"
    assert (
        EOS in unigram("hello </s> world", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    )
    assert EOS not in spelt
    assert unigram.decode(spelt).replace(" ", "") == "hello</s>world"
