"""What the passes of a step are counted to hold, against the same passes of real tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from cagsr.attention.reading import ATTENTION
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.config.schema import Lora, Sampling
from cagsr.models.build import recompute_activations
from cagsr.planning import passes as planning
from cagsr.planning.passes import Passes, Work

WORK = Work(prompts=3, candidates=5, prompt_tokens=11, response_tokens=19)
VOCABULARY, HEADS, GROUPS, WIDTH, LAYERS = 103, 7, 1, 2, 5


def llama(**keys: Any) -> LlamaConfig:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEADS * WIDTH,
        "intermediate_size": 29,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**shape, **keys})


def size(tensors: Any) -> int:
    """Bytes of the storages of tensors, each once."""
    return sum(
        {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values()
    )


def test_decoding_holds_the_cache_and_where_a_token_is_drawn_its_distribution():
    held = Passes(llama(vocab_size=10007), torch.bfloat16).sampling(WORK, Sampling()).most()
    # Prompts once, and room for a power of two of each response's tokens; keys in float32, values as they are.
    assert held["keys and values"] == LAYERS * GROUPS * WIDTH * (4 + 2) * (3 * 11 + 15 * 32)
    # As they are, in float32, and in float64 before and after they are added up.
    assert held["logits"] == 15 * 10007 * (2 + 4 + 8 + 8)


def test_what_autograd_keeps_is_what_it_keeps_of_real_tensors():
    config = llama(num_hidden_layers=3)
    model = LlamaForCausalLM._from_config(config, attn_implementation=ATTENTION).eval()
    shared, kept = SharedPrompt(*WORK.masks()), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    ids = torch.zeros(1, sum(shared.split), dtype=torch.long)
    given = {"position_ids": shared.positions, "attention_mask": shared.mask, "shared_prompt": shared}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids, use_cache=False, logits_to_keep=shared.predicting, **given)
    there = [
        *model.parameters(),
        ids,
        *(value for value in vars(shared).values() if isinstance(value, Tensor)),
    ]
    there += [shared.prompts.at, shared.responses.at]
    outside = {each.untyped_storage().data_ptr() for each in there}
    biases = [each for made in shared._biases.values() for each in made if each is not None]
    real = [*kept, output.logits, *biases]
    passes = Passes(config, torch.float32)
    ledger, counted = passes._start(), SharedPrompt(*WORK.masks())
    held = passes._output(counted, sum(counted.split), counted.predicting)
    assert held.logits.shape == output.logits.shape == (1, 3 + 15 * 18 - 1, VOCABULARY)
    assert ledger.held.total() == size(
        each for each in real if each.untyped_storage().data_ptr() not in outside
    )


@pytest.mark.parametrize(("lora", "autocast", "recomputes"), [(None, False, True), (Lora(r=3), True, False)])
def test_three_blocks_stand_for_any_number_that_are_alike(lora, autocast, recomputes, monkeypatch):
    found = []
    for shortened in (True, False):
        if not shortened:
            monkeypatch.setattr(planning, "_shorten", lambda model: 1)
        passes = Passes(llama(num_hidden_layers=4), torch.float32, lora, autocast=autocast)
        if recomputes:
            recompute_activations(passes.model, "llama")
        assert len(passes.blocks) == (3 if shortened else 4)
        ledger = passes.update(WORK, parts=1)
        assert ledger.held.total() == 0  # nothing is left behind
        weights = sum(times * weight.nbytes for weight, times in passes.weights.items())
        found.append((weights, ledger.most()))
    assert found[0] == found[1]


def test_keys_and_values_of_all_blocks_are_there_while_long_prompts_are_read(monkeypatch):
    work, config, found = Work(2, 2, prompt_tokens=101, response_tokens=2), llama(num_hidden_layers=5), []
    for shorten in (planning._shorten, lambda model: 1):
        monkeypatch.setattr(planning, "_shorten", shorten)
        found.append(sum(Passes(config, torch.float32).sampling(work, Sampling()).most().values()))
    assert found[0] == found[1] > 5 * GROUPS * WIDTH * 2 * 4 * (2 * 101 + 4 * 16)


def test_attention_is_there_three_times_when_it_is_moved_and_log_probabilities_of_prompts_twice():
    passes = Passes(llama(num_hidden_layers=1), torch.float32)
    held = passes.observing(WORK, read=1_000_003, told=100_003).most()
    assert held["attention read"] == 4 * (3 * 1_000_003 + 2 * 100_003)
    assert held["logits"] == 4 * VOCABULARY * (3 + 15 * 18 - 1)


def test_gradients_of_an_earlier_part_are_there_while_a_later_one_is_differentiated():
    weights = 4 * (2 * 103 * 14 + 14 + 14 * 14 * 2 + 14 * 2 * 2 + 3 * 14 * 29 + 2 * 14)
    assert (
        Passes(llama(num_hidden_layers=1), torch.float32).update(WORK, parts=2).most()["gradients"] == weights
    )


def test_blocks_that_are_not_alike_are_all_computed():
    kinds = ["full_attention", "sliding_attention"] * 2
    shape = {"hidden_size": 14, "intermediate_size": 29, "num_attention_heads": 7, "num_key_value_heads": 1}
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        num_hidden_layers=4,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=kinds,
        **shape,
    )
    assert len(Passes(config, torch.float32).blocks) == 4
