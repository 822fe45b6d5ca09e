"""What candidates.jsonl keeps: which steps, which tokens wrote which characters, where each of them looked."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from cagsr.config.schema import Term
from cagsr.models import predictions
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Uniform
from cagsr.rewards.segments import knockout, segments, without
from cagsr.training.attention_summary import look
from cagsr.training.candidate_log import Shown, token_spans
from cagsr.training.rollout_buffer import load_buffer, save_buffer
from cagsr.types import Evidence
from evidence import make_evidence, make_prompt


def byte_level() -> PreTrainedTokenizerFast:
    """A token a byte, as of the models that write any text; token 0 ends it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({"</s>": 0, **{c: 1 + n for n, c in enumerate(alphabet)}}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")


def written(tokenizer, text: str) -> list[str] | None:
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    spans = token_spans(tokenizer, ids, tokenizer.decode(ids, skip_special_tokens=True))
    return spans and [text[start:end] for start, end in spans]


def test_every_token_has_the_characters_that_it_wrote():
    words = tiny.policy("t5").tokenizer
    assert written(words, "red , green") == ["red", " ,", " green", ""]


def test_tokens_that_write_one_character_together_all_have_its_span():
    assert written(byte_level(), "aé€b") == ["a", "é", "é", "€", "€", "€", "b", ""]


def test_text_that_the_tokens_do_not_write_has_no_spans():
    tokenizer = byte_level()
    ids = tokenizer("ab")["input_ids"]
    assert token_spans(tokenizer, ids, "ab") == [(0, 1), (1, 2)]
    assert token_spans(tokenizer, ids, "ac") is None
    assert token_spans(tokenizer, ids, "abc") is None
    half = tokenizer("é")["input_ids"][:1]
    assert token_spans(tokenizer, half, tokenizer.decode(half)) is None


def test_a_look_keeps_the_strongest_entries_of_what_was_said():
    attention = torch.tensor([[[0.1, 0.7, 0.2], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]]])
    found = look(make_evidence(attention, finished=[True]))
    assert torch.equal(found.attended, torch.tensor([[0.3, 0.7, 0.4]]))
    assert torch.equal(found.columns[0, 0], torch.tensor([1, 2, 0]))
    assert torch.equal(found.weights[0, 0], torch.tensor([0.7, 0.2, 0.1]))
    assert torch.equal(found.weights[0, 2], torch.zeros(3))
    assert found.pieces is None
    assert found.nats is None
    assert look(make_evidence(torch.rand(1, 3, 11))).weights.shape == (1, 3, 5)


def test_a_look_keeps_how_strongly_each_known_piece_was_looked_at_where_it_was_looked_at_most():
    attention = torch.tensor([[[0.2, 0.1, 0.4, 0.0], [0.0, 0.3, 0.1, 0.6], [0.9, 0.9, 0.9, 0.9]]])
    evidence = make_evidence(attention.expand(2, -1, -1), finished=[True, True], group_size=2)
    assert look(evidence).looked is None
    pieces = torch.tensor([[[True, True, False, False], [False, True, False, True], [False] * 4]])
    found = look(replace(evidence, pieces=pieces))
    # Means of the first two columns .15, .15; of the second and the last .05, .45; the end of the response looks at
    # nothing, and the last piece is none.
    torch.testing.assert_close(found.looked, torch.tensor([[0.15, 0.45, 0.0]] * 2))
    assert torch.equal(found.pieces, pieces)
    assert found.nats is None


class Halves(Uniform):
    """Two pieces a prompt: all of its tokens but the last one, first and second half; for the shortest a piece."""

    def divide(self, prompt):
        tokens = [*range(len(prompt.ids) - 1)]
        middle = len(tokens) // 2 if len(tokens) > 5 else len(tokens)
        return [half for half in (tokens[:middle], tokens[middle:]) if half]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_rows_have_the_pieces_of_a_prompt_and_how_strongly_each_response_looked_at_them(kind: str, tmp_path):
    policy = tiny.policy(kind)
    step, prompts = tiny.make_step(policy), tiny.prompts(policy, (11, 5, 7))
    step.salience = Halves()
    collected = step.collect(prompts, seed=3)
    shown = Shown(3, policy.tokenizer, Halves(), every=5)
    rows = shown.rows(2, collected)
    assert [rows[first]["segments"] for first in (0, 3, 6)] == [Halves().divide(one) for one in prompts]
    for n, row in enumerate(rows):
        alone = collected.rollout.groups(n // 3, n // 3 + 1)
        attention = step.observer.observe(alone).attention[n % 3][:, alone.prompt_mask[0]]
        said = attention[: int(alone.lengths[n % 3]) - int(alone.finished[n % 3])]
        means = [said[:, piece].mean(-1) for piece in row["segments"]]
        assert row["looked"] == pytest.approx([float(mean.max()) for mean in means], rel=6e-3)  # three digits
        assert "explained" not in row
    save_buffer(collected, tmp_path, 0)
    assert shown.rows(2, load_buffer(tmp_path, 0, prompts, torch.device("cpu"))) == rows


@pytest.mark.parametrize("observes", ["reference", "policy"])
def test_of_long_prompts_only_what_is_shown_is_read_by_token_and_it_moves_no_number(observes, monkeypatch):
    monkeypatch.setattr(predictions, "LARGE", 0)
    found, read = {}, []
    for shown in (0, 1, 3):
        policy = tiny.policy("llama", extra_eos=20)
        step = tiny.make_step(policy, groups_per_pass=1, shown=shown, salience=Halves())
        step.reward = Reward([Term("attended", standardise="none")])
        step.observer = step.reference if observes == "reference" else policy
        measure = step.reward.measure
        step.reward.measure = lambda evidence, measure=measure: (
            read.append({*evidence.observation.on_prompt}) or measure(evidence)
        )
        prompts = tiny.prompts(policy, (11, 5, 7))
        found[shown] = step.collect(prompts, seed=3)
        assert [len(look.attended) for look in found[shown].attended] == [3] * shown
    first = {"looks", "attention"}
    # While the policy writes all prompts at once, it reads all of them alike.
    rest = {"looks"} if observes == "reference" else first
    assert read == [*[{"looks"}] * 3, first, rest, rest, first, first, first]
    for collected in found.values():
        assert torch.equal(collected.scores.reward, found[0].scores.reward)
    rows = [Shown(1, policy.tokenizer, Halves(), every=5).rows(1, found[shown]) for shown in (1, 3)]
    assert len(rows[0]) == 3
    assert rows[0] == rows[1]


class Losing:
    """Loses 2 nats a token without the first piece of a prompt, none without the others."""

    def logprobs(self, rollout):
        taken = ~rollout.prompt_mask[:, 1].repeat_interleave(rollout.group_size)
        return torch.where(taken, -2.0, 0.0)[:, None].expand(rollout.response_ids.shape)


def test_what_a_knockout_found_is_kept_and_nobody_is_asked_for_it_alone():
    prompts = [make_prompt("of red ; big", index=0), make_prompt("of", index=1)]
    # Padded on the left, as a causal model's: the second prompt's only token is its last column.
    mask = [[True] * 4, [False] * 3 + [True]]
    salience = [[0, 0.5, 0, 0.5], [0.0] * 4]
    evidence = make_evidence(
        torch.zeros(4, 3, 4), group_size=2, prompts=prompts, prompt_mask=mask, salience=torch.tensor(salience)
    )
    evidence = replace(evidence, observer=Losing())
    segments(evidence)
    assert look(evidence).nats is None
    knockout(evidence)
    found = look(evidence)
    # Three tokens of 2 nats; the second prompt has no segment.
    assert found.nats.tolist() == [[6, 0], [6, 0], [0, 0], [0, 0]]
    assert found.pieces[0].int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_rows_have_the_segments_of_a_prompt_and_what_each_explains_and_a_buffer_keeps_them(tmp_path):
    policy = tiny.policy("t5")
    step, prompts = tiny.make_step(policy), tiny.prompts(policy)
    collected = step.collect(prompts, seed=3)
    shown = Shown(3, policy.tokenizer, Uniform(), every=5)
    assert (
        "segments"
        not in shown.rows(2, replace(collected, attended=[bare(one) for one in collected.attended]))[0]
    )
    known = []
    for batch, looked in zip(collected.batches, collected.attended, strict=True):
        part = batch.rollout
        evidence = Evidence(part, step.observer.observe(part), Uniform()(part), step.observer)
        knockout(evidence)
        found = look(evidence)
        known.append(replace(bare(looked), pieces=found.pieces, nats=found.nats))
    whole = replace(collected, attended=known)
    row = shown.rows(2, whole)[0]
    pieces = [[prompts[0].text[slice(*row["tokens"][token])] for token in piece] for piece in row["segments"]]
    alone = collected.rollout.groups(0, 1)
    for words, piece, nats in zip(pieces, row["segments"], row["explained"], strict=True):
        assert "".join(words).strip()
        taken = torch.zeros_like(alone.prompt_mask)
        taken[0, alone.prompt_mask[0].nonzero().flatten()[piece]] = True
        lost = step.observer.logprobs(alone) - step.observer.logprobs(without(alone, taken))
        assert nats == pytest.approx(float(lost[0].sum()), abs=0.006)  # rounded to hundredths
    save_buffer(whole, tmp_path, 0)
    assert shown.rows(2, load_buffer(tmp_path, 0, prompts, torch.device("cpu"))) == shown.rows(2, whole)


def bare(looked):
    return replace(looked, pieces=None, nats=None)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_kept_attention_is_that_of_the_observer_whatever_the_padding(kind: str):
    policy = tiny.policy(kind)
    step = tiny.make_step(policy)
    prompts = tiny.prompts(policy)
    collected = step.collect(prompts, seed=3)
    rows = Shown(3, policy.tokenizer, Uniform(), every=5).rows(1, collected)
    assert len(rows) == 9
    for n, row in enumerate(rows):
        prompt = prompts[n // 3]
        alone = collected.rollout.groups(n // 3, n // 3 + 1)
        said = torch.arange(alone.response_mask.shape[1]) < alone.lengths[n % 3] - alone.finished[n % 3].int()
        attention = step.observer.observe(alone).attention[n % 3] * said[:, None]
        kept = attention[: len(row["attention"]["weights"]), alone.prompt_mask[0]]
        assert row["tokens"] == [list(span) for span in prompt.offsets]
        assert row["salience"] == Uniform().weigh(prompt)
        assert row["attended"] == pytest.approx(attention[:, alone.prompt_mask[0]].amax(0).tolist(), abs=1e-3)
        for t, flat in enumerate(row["attention"]["weights"]):
            entries = dict(zip(flat[::2], flat[1::2], strict=True))
            strongest = kept[t].topk(min(5, kept.shape[1]))
            expected = {
                j: w
                for j, w in zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
                if w >= 0.03
            }
            assert entries == pytest.approx(expected, abs=0.006)


def test_attention_is_kept_at_the_first_step_and_every_few():
    policy = tiny.policy("t5")
    collected = tiny.make_step(policy).collect(tiny.prompts(policy), seed=3)
    shown = Shown.of_run(1, policy.tokenizer, Uniform(), steps=101)
    assert [step for step in range(1, 8) if "attention" in shown.rows(step, collected)[0]] == [1, 2, 4, 6]
    assert replace(shown, prompts=0).rows(1, collected) == []
