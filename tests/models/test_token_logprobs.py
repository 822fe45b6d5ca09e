"""Log-probabilities in chunks, against the plain formulas in float64, gradients included."""

import pytest
import torch
from torch import Tensor

from cagsr.models import token_logprobs as likelihood
from cagsr.models.token_logprobs import facts, token_likelihood, token_logprobs

PLACES, VOCABULARY, ROWS, TEMPERATURE = 7, 11, 13, 0.7


@pytest.fixture(params=[1, 30, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", request.param)


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and tokens some of which are predicted at one place; place 5 predicts none."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(PLACES, VOCABULARY, generator=generator) * 3
    place = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 6, 6, 6])
    return logits, place, torch.randint(VOCABULARY, (ROWS,), generator=generator)


def by_definition(logits: Tensor, place: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = (logits[place] / TEMPERATURE).log_softmax(-1)
    return logprobs[range(ROWS), tokens], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("of", [(1.0, 0.0), (0.0, 1.0), (0.3, -1.7)], ids=["logprobs", "entropy", "both"])
def test_values_and_gradients_are_those_of_the_definition(of: tuple[float, float]):
    logits, place, tokens = drawn()
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    exact = logits.double().requires_grad_()
    fast = logits.clone().requires_grad_()
    results = {}
    for name, leaf, function in (
        ("exact", exact, by_definition),
        ("fast", fast, lambda *given: token_likelihood(*given, TEMPERATURE)),
    ):
        logprobs, entropy = function(leaf, place, tokens)
        results[name] = (logprobs, entropy)
        terms = [
            share * (weights * value).sum()
            for share, value in zip(of, (logprobs, entropy), strict=True)
            if share
        ]
        sum(terms).backward()
    for found, expected in zip(results["fast"], results["exact"], strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert not fast.grad[5].any()


def test_a_token_that_cannot_be_written_adds_nothing():
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0)), -torch.inf]], requires_grad=True)
    logprobs, entropy = token_likelihood(logits, torch.tensor([0]), torch.tensor([1]))
    (logprobs + entropy).sum().backward()
    quarter = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(logprobs, quarter[1:].log())
    torch.testing.assert_close(entropy, -(quarter * quarter.log()).sum()[None])
    # d log p_1 = (-1/4, 1/4);  d H = -p (log p + H)
    by_entropy = -quarter * (quarter.log() + entropy.detach())
    torch.testing.assert_close(
        logits.grad[0], torch.tensor([-0.25, 0.25, 0.0]) + torch.cat([by_entropy, torch.zeros(1)])
    )


def test_logits_of_a_short_float_type_are_summed_in_float32_and_get_their_own_gradient_type():
    logits, place, tokens = drawn()
    short = logits.bfloat16().requires_grad_()
    logprobs, _ = token_likelihood(short, place, tokens, TEMPERATURE)
    expected, _ = by_definition(short.detach().double(), place, tokens)
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-6)
    logprobs.sum().backward()
    assert short.grad.dtype == torch.bfloat16


def test_no_copy_of_all_logits_is_made_but_their_gradient():
    """256 x 4096 logits are 4 MB; a chunk is 1 MB, and of it a few copies live at a time."""
    logits = torch.randn(256, 4096, requires_grad=True)
    place, tokens = torch.arange(256), torch.zeros(256, dtype=torch.long)
    size = logits.numel() * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "CHUNK", 1 << 18)
        with torch.profiler.profile(profile_memory=True) as profile:
            token_likelihood(logits, place, tokens)[0].sum().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert size < peak < 2.2 * size


@pytest.mark.usefixtures("chunk")
def test_logprobs_alone_are_those_of_the_likelihood_to_the_bit():
    logits, place, tokens = drawn()
    expected, _ = token_likelihood(logits, place, tokens, TEMPERATURE)
    assert torch.equal(token_logprobs(logits, place, tokens, TEMPERATURE), expected)


@pytest.mark.usefixtures("chunk")
def test_facts_are_those_of_the_definition():
    logits, place, tokens = drawn()
    others = torch.arange(ROWS * 3).view(ROWS, 3) % VOCABULARY
    found = facts(logits, place, tokens, others, TEMPERATURE)
    logprobs = (logits.double()[place] / TEMPERATURE).log_softmax(-1)
    written = logprobs[range(ROWS), tokens]
    expected = {
        "logprobs": written,
        "confidence": (written - logprobs.max(-1).values).exp(),
        "entropy": -(logprobs.exp() * logprobs).sum(-1),
        "certainty": -logprobs.mean(-1) - torch.tensor(float(VOCABULARY)).double().log(),
        "prompt_logprobs": logprobs.gather(-1, others),
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name).double(), values, rtol=1e-5, atol=1e-6, msg=name)
