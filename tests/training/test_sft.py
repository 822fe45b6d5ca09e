"""How rows fall into the batches of supervised fine-tuning, and what stops it."""

from collections import Counter
from itertools import islice
from random import Random

import pytest
import torch
from accelerate import Accelerator

import tiny
from cagsr.config.schema import Sft
from cagsr.errors import InputError, NumericsError
from cagsr.training.sft import POOL, fine_tune, shuffled_batches


def test_every_row_comes_once_before_any_comes_again():
    rows, size = 11 * POOL * 3, 3
    lengths = [Random(7).randrange(100) for _ in range(rows)]
    batches = list(islice(shuffled_batches(lengths, size, Random(0)), 2 * rows // size))
    assert all(len(batch) == size for batch in batches)
    first = [row for batch in batches[: rows // size] for row in batch]
    assert sorted(first) == list(range(rows))
    assert set(Counter(row for batch in batches for row in batch).values()) == {2}


def test_fewer_rows_than_a_batch_come_again_within_it():
    (batch,) = islice(shuffled_batches([5, 3], 7, Random(0)), 1)
    assert len(batch) == 7
    assert set(batch) <= {0, 1}


def test_a_pool_is_no_larger_than_the_data_so_that_a_row_is_not_beside_itself():
    batches = list(islice(shuffled_batches([9] * 13, 5, Random(0)), 40))
    assert all(len(set(batch)) >= 3 for batch in batches)
    counts = Counter(row for batch in batches for row in batch)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_batch_holds_rows_of_like_length_and_batches_come_in_random_order():
    lengths = list(range(5 * POOL))
    Random(1).shuffle(lengths)
    batches = list(islice(shuffled_batches(lengths, 5, Random(0)), POOL))
    spans = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert max(spans) == 4
    shortest = [min(lengths[row] for row in batch) for batch in batches]
    assert shortest != sorted(shortest)


class Processes(Accelerator):
    """This process as one of several that do the same."""

    num_processes = 3


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused():
    policy = tiny.policy("llama")
    with pytest.raises(InputError, match=r"sft.batch_size \(7\) must be a multiple of .*\(3\)"):
        fine_tune(policy, tiny.prompts(policy), ["a"] * 4, Sft(batch_size=7), Processes(cpu=True))


def test_the_loss_of_a_reference_that_was_cut_off_has_no_end_in_it():
    policy, losses = tiny.policy("llama"), []
    words = policy.tokenizer.convert_ids_to_tokens([5, 7, 11])
    prompts = tiny.prompts(policy)[:2]
    expected = policy.logprobs(policy.given_ids(prompts, [[5, 7, 11], [5, 7, 11, policy.eos_ids[0]]]))
    settings = Sft(batch_size=2, steps=1)
    given = (policy, prompts, [" ".join(words)] * 2, settings, Accelerator(cpu=True))
    fine_tune(*given, lambda step, loss: losses.append(loss), finished=[False, True])
    assert losses == pytest.approx([-expected.sum().item() / 7], abs=1e-5)


@pytest.mark.parametrize("place", ["loss", "gradient norm"])
def test_trap_22_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimizer_step(place):
    policy = tiny.policy("llama")
    reference = " ".join(policy.tokenizer.convert_ids_to_tokens([5, 7, 11]))
    weights, steps = [], []

    def report(step, loss):
        steps.append(step)
        weights[:] = [tiny.weights_of(policy)]
        if step == 2 and place == "loss":
            policy.model.lm_head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
        if step == 2 and place == "gradient norm":
            policy.model.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)

    with pytest.raises(NumericsError, match=rf"step 3: the {place} is (nan|inf)"):
        fine_tune(
            policy,
            tiny.prompts(policy),
            [reference] * 4,
            Sft(batch_size=2, steps=5),
            Accelerator(cpu=True),
            report,
        )
    assert steps == [1, 2]
    for key, value in tiny.weights_of(policy).items():
        assert torch.equal(value, weights[0][key]), key
