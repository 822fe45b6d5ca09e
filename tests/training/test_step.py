"""One step, from prompts to moved weights, against the same computed plainly: no batches, no padding, no clipping."""

import math
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from cagsr.attention.sharing import Sharing
from cagsr.config.registry import ESTIMATORS
from cagsr.config.schema import AlgorithmSettings, Loss, Term
from cagsr.errors import NumericsError, SignalError
from cagsr.models.reference import Reference
from cagsr.rewards.reward import Reward
from cagsr.training.algorithms import Algorithm
from cagsr.training.kl import KLController
from cagsr.training.losses import NORMALISATIONS
from cagsr.training.step_metrics import measure

K = 3
PROMPTS = (3, 7, 2, 5, 4)


def perturb(policy, seed=1, by=0.02):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def ready(name, *, critic=False, seed=0, **settings):
    """A step whose policy has already left its reference, so that no KL is 0."""
    policy = tiny.policy(name, extra_eos=20, critic=critic, seed=seed)
    reference = Reference(policy)
    perturb(policy)
    step = tiny.make_step(policy, reference=reference, **settings)
    return policy, step, tiny.prompts(policy, PROMPTS)


# Ratio ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "algorithm", "checkpointing"),
    [
        ("t5", "ppo", True),
        ("t5", "grpo", False),
        ("llama", "ppo", False),
        ("llama", "grpo", True),
    ],
)
def test_trap_16_the_ratio_of_the_first_epoch_is_exactly_1(name, algorithm, checkpointing, monkeypatch):
    seen = []

    def spy(self, scored, batch, coefficient, original=Algorithm.token_losses):
        seen.append((scored.logprobs.detach().clone(), batch.old_logprobs, scored.values, batch.values))
        return original(self, scored, batch, coefficient)

    monkeypatch.setattr(Algorithm, "token_losses", spy)
    settings = Algorithm(AlgorithmSettings(name=algorithm, epochs=2))
    policy, step, prompts = ready(name, critic=algorithm == "ppo", algorithm=settings)
    if checkpointing:
        policy.model.activation_checkpointing_enable()
    for number in range(2):
        collected = step.collect(prompts, seed=number)
        seen.clear()
        means = step.update(collected.batches)
        # Parts of 2, 2 and 1 groups, twice.
        assert len(seen) == 6
        for logprobs, old, values, old_values in seen[:3]:
            assert torch.equal(logprobs, old)
            assert values is None or torch.equal(values.detach(), old_values)
        assert not torch.equal(seen[3][0], seen[3][1])
        assert means["clipped"] < 1


# The update against a plain computation -----------------------------------------------------------------------


def plain_scores(policy, prompt, written):
    """Log-probabilities [T] and, with a critic, values [T] of one unpadded response, with gradients."""
    encoder_decoder = policy.model.config.is_encoder_decoder
    output = policy.model(
        **tiny.inputs_of(policy, prompt, written), output_hidden_states=True, use_cache=False
    )
    states = output.decoder_hidden_states if encoder_decoder else output.hidden_states
    start = 0 if encoder_decoder else len(prompt.ids) - 1
    rows = slice(start, start + len(written))
    logprobs = output.logits[0, rows].log_softmax(-1)[range(len(written)), written]
    values = None if policy.value_head is None else policy.value_head(states[-1][0, rows])
    return logprobs, values


def plain_loss(algorithm, policy, reference, rollout, coefficient):
    """The loss of a first update as the papers write it, over single responses and single tokens."""
    rows = []
    for row in range(len(rollout.responses)):
        prompt = rollout.prompts[row // K]
        written = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        logprobs, values = plain_scores(policy, prompt, written)
        with torch.no_grad():
            ref, _ = plain_scores(reference._policy, prompt, written)
        reward = sum(token < 50 for token in written) / len(written)
        rows.append((logprobs, values, ref, reward))
    beta = coefficient if algorithm.kl_placement == "reward" else 0.0
    spent = [beta * (logprobs.detach() - ref) for logprobs, _, ref, _ in rows]
    total = torch.tensor(
        [reward - float(kl.sum()) for (_, _, _, reward), kl in zip(rows, spent, strict=True)]
    )
    groups = total.view(-1, K)
    if algorithm.settings.name == "grpo":
        shared = ((groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)).flatten()
    elif algorithm.settings.name == "dr-grpo":
        shared = (groups - groups.mean(1, keepdim=True)).flatten()
    elif algorithm.settings.name == "rloo":
        shared = torch.stack([g[k] - (g.sum() - g[k]) / (K - 1) for g in groups for k in range(K)])
    elif algorithm.settings.name == "policy-gradient":
        shared = torch.stack([r - (total.sum() - r) / (len(total) - 1) for r in total])
    if algorithm.settings.name == "ppo":
        per_token, targets = [], []
        raw = [reward for *_, reward in rows]
        for row, ((_, values, _, reward), kl) in enumerate(zip(rows, spent, strict=True)):
            values, earned = values.detach(), -kl
            first = row - row % K
            others = [raw[other] for other in range(first, first + K) if other != row]
            mean = sum(others) / len(others) if algorithm.settings.value_baseline == "group" else 0.0
            earned[-1] += reward - mean
            size = len(values)
            ahead = torch.cat([values[1:], torch.zeros(1)])
            delta = earned + algorithm.settings.gamma * ahead - values
            decay = algorithm.settings.gamma * algorithm.settings.gae_lambda
            advantage = torch.stack(
                [sum(decay ** (s - t) * delta[s] for s in range(t, size)) for t in range(size)]
            )
            per_token.append(advantage)
            targets.append(advantage + values)
        everything = torch.cat(per_token)
        deviation = everything.std(unbiased=False)
        per_token = [(advantage - everything.mean()) / deviation for advantage in per_token]
    else:
        per_token = [shared[row].expand(len(kl)) for row, kl in enumerate(spent)]
    loss, tokens = 0.0, sum(len(kl) for kl in spent)
    for row, (logprobs, values, ref, _) in enumerate(rows):
        ratio = (logprobs - logprobs.detach()).exp()
        losses = -ratio * per_token[row]
        if algorithm.settings.loss.name == "cispo":
            losses = -logprobs * per_token[row]
        if algorithm.kl_placement == "loss":
            k3 = (ref - logprobs).exp() - 1 - (ref - logprobs)
            k2 = (logprobs - ref) ** 2 / 2
            losses = losses + coefficient * (k3 if algorithm.settings.kl_estimate == "k3" else k2)
        if values is not None:
            losses = losses + algorithm.settings.value_coefficient * (values - targets[row]) ** 2 / 2
        share = {
            "token": 1 / tokens,
            "sequence": 1 / (len(rows) * len(logprobs)),
            "constant": 1 / (len(rows) * 7),
        }[algorithm.normalisation]
        loss = loss + share * losses.sum()
    return loss


SETTINGS = [
    Algorithm(AlgorithmSettings(name="grpo", kl_placement="loss", loss_normalisation="token")),
    Algorithm(AlgorithmSettings(name="grpo", kl_placement="reward", loss_normalisation="sequence")),
    Algorithm(AlgorithmSettings(name="rloo", kl_placement="reward", loss_normalisation="constant")),
    Algorithm(AlgorithmSettings(name="policy-gradient", kl_placement="loss", loss_normalisation="sequence")),
    Algorithm(
        AlgorithmSettings(
            name="ppo", kl_placement="reward", loss_normalisation="token", gamma=0.97, gae_lambda=0.8
        )
    ),
    Algorithm(
        AlgorithmSettings(
            name="ppo",
            kl_placement="loss",
            loss_normalisation="constant",
            value_coefficient=0.5,
            value_baseline="none",
        )
    ),
    Algorithm(AlgorithmSettings(name="dr-grpo", kl_estimate="k3")),
    Algorithm(AlgorithmSettings(loss=Loss(name="cispo"))),
    Algorithm(AlgorithmSettings(loss=Loss(name="gspo"), loss_normalisation="sequence")),
]


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize(
    "algorithm",
    SETTINGS,
    ids=lambda a: f"{a.settings.name}-{a.settings.loss.name}-{a.kl_placement}-{a.normalisation}",
)
def test_the_loss_and_its_gradient_are_those_of_the_plain_computation(name, algorithm):
    settings = {"algorithm": algorithm, "kl_controller": KLController(0.3), "optimizer": torch.optim.SGD}
    critic = algorithm.settings.name == "ppo"
    policy, step, prompts = ready(name, critic=critic, learning_rate=1.0, **settings)
    collected = step.collect(prompts, seed=7)
    assert collected.rollout.lengths.unique().numel() > 2, "the test needs ragged responses"

    loss = plain_loss(algorithm, policy, step.reference, collected.rollout, 0.3)
    expected = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    means = step.update(collected.batches)
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected))
    assert means["grad_norm"] == pytest.approx(norm, rel=1e-3)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for parameter, old, gradient in zip(policy.parameters(), before, expected, strict=True):
        torch.testing.assert_close(old - parameter.detach(), gradient, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize(
    ("settings", "normalisation"),
    [
        ({}, "token"),
        ({"name": "dr-grpo"}, "constant"),
        ({"name": "ppo"}, "token"),
        ({"name": "dr-grpo", "loss_normalisation": "sequence"}, "sequence"),
    ],
)
def test_an_algorithm_brings_its_normalisation_unless_one_is_named(settings, normalisation):
    assert Algorithm(AlgorithmSettings(**settings)).normalisation == normalisation


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_trap_18_one_micro_batch_of_8_groups_moves_the_weights_like_8_of_one(how):
    found = []
    for groups_per_pass in (8, 3, 1):
        algorithm = Algorithm(AlgorithmSettings(name="ppo", kl_placement="loss", loss_normalisation=how))
        settings = {"optimizer": torch.optim.SGD, "learning_rate": 1.0, "algorithm": algorithm}
        policy, step, _ = ready("t5", critic=True, groups_per_pass=groups_per_pass, **settings)
        collected = step.collect(tiny.prompts(policy, (3, 7, 2, 5, 4, 3, 6, 2)), seed=7)
        assert len(collected.batches) == math.ceil(8 / groups_per_pass)
        before = torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])
        means = step.update(collected.batches)
        after = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
        found.append((before - after, means["loss"], collected.rollout.responses))
    for moved, loss, responses in found[1:]:
        assert responses == found[0][2]
        assert loss == pytest.approx(found[0][1], rel=1e-4)
        torch.testing.assert_close(moved, found[0][0], rtol=1e-3, atol=1e-5)


def test_minibatches_are_separate_optimizer_steps_and_the_means_are_over_those_taken():
    algorithm = Algorithm(AlgorithmSettings(epochs=2, minibatches=2))
    _, step, prompts = ready("llama", algorithm=algorithm, optimizer=torch.optim.SGD, learning_rate=0.0)
    collected = step.collect(prompts, seed=1)
    before = step.scheduler.last_epoch
    norms = []
    original = step._optimizer_step
    step._optimizer_step = lambda part: norms.append(original(part)) or norms[-1]
    means = step.update(collected.batches)
    assert len(norms) == 4
    assert step.scheduler.last_epoch - before == 4
    assert means["grad_norm"] == pytest.approx(sum(norm["grad_norm"] for norm in norms) / 4)

    step.algorithm = Algorithm(AlgorithmSettings(minibatches=5))
    norms.clear()
    means = step.update(collected.batches[:2])
    assert len(norms) == 2
    assert means["grad_norm"] == pytest.approx(sum(norm["grad_norm"] for norm in norms) / 2)


@pytest.mark.parametrize(("name", "algorithm"), [*zip(cycle(["t5", "llama"]), ESTIMATORS, strict=False)])
def test_every_algorithm_learns_a_trivial_reward(name, algorithm):
    policy = tiny.policy(name, critic=algorithm == "ppo")
    step = tiny.make_step(
        policy,
        algorithm=Algorithm(
            AlgorithmSettings(
                name=algorithm, kl_placement="reward" if algorithm == "ppo" else "loss", epochs=2
            )
        ),
        kl_controller=KLController(0.01),
        sampling=tiny.sampling(candidates=5, max_new_tokens=5),
        groups_per_pass=4,
        learning_rate=0.05,
    )
    prompts = tiny.prompts(policy)
    before = float(step.collect(prompts, seed=99).scores.reward.mean())
    for number in range(8):
        step.update(step.collect(prompts, seed=number).batches)
    after = float(step.collect(prompts, seed=99).scores.reward.mean())
    assert after > before + 0.2


# Observers --------------------------------------------------------------------------------------------------


def attention_reward():
    return Reward([Term("mass", standardise="none")])


def test_trap_24_the_reward_read_by_the_reference_does_not_move_with_the_policy():
    for observer_moves in (False, True):
        policy = tiny.policy("llama", extra_eos=20)
        reference = Reference(policy)
        observer = policy if observer_moves else reference
        step = tiny.make_step(
            policy,
            reference=reference,
            observer=observer,
            reward=attention_reward(),
            algorithm=Algorithm(AlgorithmSettings(epochs=2)),
        )
        prompts = tiny.prompts(policy)
        first = step.collect(prompts, seed=3)
        rollout = first.rollout
        # The same responses again, from a policy that attends in another way.
        perturb(policy, by=0.1)
        policy.sample = lambda *_, rollout=rollout: rollout
        policy.sample_observed = lambda *_, rollout=rollout, policy=policy: (rollout, policy.observe(rollout))
        again = step.collect(prompts, seed=3)
        assert torch.equal(again.scores.signals, first.scores.signals) == (not observer_moves)
        assert not torch.equal(again.batches[0].old_logprobs, first.batches[0].old_logprobs)
        assert torch.equal(again.batches[0].ref_logprobs, first.batches[0].ref_logprobs)


@pytest.mark.parametrize(("epochs", "of_policy"), [(1, 2), (2, 6)])
def test_no_forward_pass_is_made_for_the_reward_alone(epochs, of_policy):
    policy = tiny.policy("t5")
    step = tiny.make_step(
        policy, reward=attention_reward(), algorithm=Algorithm(AlgorithmSettings(epochs=epochs))
    )
    calls = {"reference": 0, "policy": 0}
    for name, counted in (("reference", step.reference._policy), ("policy", policy)):

        def count(rollout, hidden, original=counted._predict, name=name):
            calls[name] += 1
            return original(rollout, hidden)

        counted._predict = count
    step.update(step.collect(tiny.prompts(policy), seed=0).batches)
    # Two parts: one pass of each to collect, unless a single update tells the same; one of the policy an epoch.
    assert calls == {"reference": 2, "policy": of_policy}


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_policy_that_cannot_read_while_it_writes_observes_part_by_part(name):
    policy = tiny.policy(name)
    step = tiny.make_step(policy, observer=policy, reward=attention_reward(), groups_per_pass=2)
    prompts, asked = tiny.prompts(policy, PROMPTS), []
    policy.observe = lambda part, wanted: (
        asked.append(len(part.prompts)) or type(policy).observe(policy, part, wanted)
    )
    seen = step.collect(prompts, seed=0)
    assert asked == []
    policy.sharing = Sharing("a test compares")
    passed = step.collect(prompts, seed=0)
    assert asked == [2, 2, 1]
    assert passed.rollout.responses == seen.rollout.responses
    torch.testing.assert_close(passed.scores.signals, seen.scores.signals, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("t5", "grpo"), ("llama", "dr-grpo"), ("llama", "rloo"), ("t5", "policy-gradient")],
)
def test_a_single_update_tells_what_a_pass_before_it_would_have_told(name, algorithm, monkeypatch):
    ends = {}
    for needs_old in (True, False):
        policy, step, prompts = ready(name, algorithm=Algorithm(AlgorithmSettings(name=algorithm)))
        assert not step.algorithm.needs_old
        monkeypatch.setattr(Algorithm, "needs_old", needs_old)
        collected = step.collect(prompts, seed=3)
        row = measure(collected, step.world) | step.update(collected.batches)
        ends[needs_old] = (row, tiny.weights_of(policy))
        monkeypatch.undo()
    (before, old_weights), (after, new_weights) = ends.values()
    assert after.keys() == before.keys()
    assert after == pytest.approx(before, rel=1e-5)
    assert after["kl"] > 0
    for key, value in old_weights.items():
        assert torch.equal(new_weights[key], value), key


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, False),
        ({"epochs": 2}, True),
        ({"minibatches": 2}, True),
        ({"kl_placement": "reward"}, True),
        ({"name": "ppo"}, True),
    ],
)
def test_a_pass_before_the_update_is_made_where_the_update_cannot_tell(settings, needs):
    assert Algorithm(AlgorithmSettings(**settings)).needs_old == needs


# Numbers that go bad ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_trap_22_a_reward_that_is_not_finite_stops_and_is_named(value):
    def broken(evidence):
        values = tiny.low_tokens(evidence)
        values[4 - 3] = value
        return values

    policy = tiny.policy("llama")
    step = tiny.make_step(
        policy, reward=Reward([Term("broken")], extra={"broken": broken}), groups_per_pass=1
    )
    with pytest.raises(
        SignalError, match=r"'broken' is (nan|inf|-inf) in row 1 \(prompt index 0, candidate 1\)"
    ):
        step.collect(tiny.prompts(policy), seed=0)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(name):
    policy, step, prompts = ready(name)
    collected = step.collect(prompts, seed=0)
    step.kl_controller.coefficient = math.nan
    before = tiny.weights_of(policy)
    with pytest.raises(
        NumericsError,
        match=r"the loss is nan \(first in .* of index 0\); stopped before",
    ):
        step.update(collected.batches)
    assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())
    assert not step.optimizer.state


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_step():
    policy, step, prompts = ready("llama")
    collected = step.collect(prompts, seed=0)
    parameter = next(iter(policy.model.model.layers[0].parameters()))
    parameter.register_hook(lambda gradient: gradient * math.inf)
    before = tiny.weights_of(policy)
    with pytest.raises(NumericsError, match=r"the gradient norm is (nan|inf); stopped before"):
        step.update(collected.batches)
    assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())
    assert not step.optimizer.state


def test_gradients_are_clipped_to_the_norm_asked_for():
    moved = []
    for limit in (1e9, 0.01):
        policy, step, prompts = ready(
            "llama", optimizer=torch.optim.SGD, learning_rate=1.0, max_grad_norm=limit
        )
        before = torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])
        means = step.update(step.collect(prompts, seed=0).batches)
        after = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
        moved.append((float((before - after).norm()), means["grad_norm"]))
    assert moved[0][0] == pytest.approx(moved[0][1], rel=1e-3)
    assert moved[0][0] > 0.1
    assert moved[1] == (pytest.approx(0.01, rel=1e-2), pytest.approx(moved[0][1], rel=1e-4))


# Gradient checkpointing and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_trap_09_gradient_checkpointing_changes_neither_gradients_nor_what_is_read(name):
    found = []
    for checkpointing in (False, True):
        settings = {"optimizer": torch.optim.SGD, "learning_rate": 1.0, "reward": attention_reward()}
        policy, step, prompts = ready(name, **settings)
        step = replace(step, observer=policy)
        if checkpointing:
            policy.model.activation_checkpointing_enable()
        collected = step.collect(prompts, seed=0)
        calls = []
        layer = (policy.model.get_decoder() if name != "llama" else policy.model.model).get_submodule(
            "block.0.layer.0" if name == "t5" else "layers.0.self_attn"
        )
        with layer.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled())):
            means = step.update(collected.batches)
        # Recomputed in the backward pass: twice for each of three parts.
        assert len(calls) == (6 if checkpointing else 3)
        found.append((collected.scores.signals, means["loss"], tiny.weights_of(policy)))
    (signals, loss, weights), (signals_2, loss_2, weights_2) = found
    torch.testing.assert_close(signals_2, signals)
    assert loss_2 == pytest.approx(loss, rel=1e-4, abs=1e-6)
    for key, value in weights.items():
        torch.testing.assert_close(weights_2[key], value, rtol=1e-3, atol=1e-4)


class Alive(TorchDispatchMode):
    """The largest number of elements that tensors of an attention matrix's shape held at one time."""

    def __init__(self, shapes: set[tuple[int, int]]):
        super().__init__()
        self.shapes, self.refs, self.most, self.largest = shapes, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
                if tuple(tensor.shape[-2:]) in self.shapes:
                    self.refs[storage.data_ptr()] = (
                        StorageWeakRef(storage),
                        storage.nbytes() // tensor.element_size(),
                    )
        self.refs = {key: entry for key, entry in self.refs.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.refs.values()))
        return output


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_the_memory_of_a_step_does_not_contain_every_layers_attention(name):
    layers, heads, prompt, written = 5, 5, 41, 23
    policy = tiny.policy(name, shape={"layers": layers, "hidden": 20, "heads": heads})
    sampling = tiny.sampling(candidates=2, max_new_tokens=written, min_new_tokens=written)
    step = tiny.make_step(policy, reward=attention_reward(), sampling=sampling, groups_per_pass=1)
    whole = prompt + written
    shapes = {(written, prompt), (whole, whole), (written, written), (prompt, prompt)}
    shapes |= {(written - 1, whole - 1), (2 * written, prompt)}  # of responses that share their prompt
    with Alive(shapes) as alive:
        step.update(step.collect(tiny.prompts(policy, (prompt,)), seed=0).batches)
    attention = 2 * layers * heads * written * prompt
    assert alive.largest > 0
    assert alive.most > 0, "no matrix of the shape of A was seen: the test looks for the wrong shapes"
    assert alive.most < attention / 2
    # Eager attention would be seen.
    policy.model.set_attn_implementation("eager")
    policy.sharing = Sharing("eager attention forms whole matrices")
    with Alive(shapes) as eager:
        policy(step.policy.sample(tiny.prompts(policy, (prompt,)), sampling)).logprobs.sum().backward()
    assert eager.most > attention
