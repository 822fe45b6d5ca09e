"""The reward of a run: what a choice becomes by the heads of its base, without labels, and what is read then."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tiny
from cagsr.config import Config
from cagsr.data.in_memory import encode_in_memory
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError
from cagsr.evaluation import chosen_reward
from cagsr.evaluation.chosen_reward import ChosenReward, choose_reward
from cagsr.evaluation.learnt_heads import NothingToldError, find_heads, keep_heads
from cagsr.models.policy import Policy
from cagsr.rewards.salience import Idf, Pieces, Uniform

SAMPLING = tiny.sampling(candidates=5, max_new_tokens=7, temperature=1.0)


def telling(name: str = "llama") -> Policy:
    """A policy whose sharp logits make knockouts differ by more than noise."""
    policy = tiny.policy(name)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(8)
    return policy


def config(*given: str, **sampling: Any) -> Config:
    made = Config.load(None, ["data.task=slots", "train.seed=3", *given])
    return made.model_copy(update={"sampling": SAMPLING.model_copy(update=sampling)})


def prompts_of(policy: Policy, texts: list[str]):
    return encode_in_memory(texts, policy.tokenizer)


def with_values(policy: Policy):
    """Prompts whose fields have values that differ."""
    words = [("alba", "lyon"), ("nova", "porto"), ("mira", "bern")]
    return prompts_of(policy, [f"artist : {artist} ; city : {city}" for artist, city in words])


def chosen(
    policy: Policy, given: Config, prompts: Any = None, kept: Path | None = None
) -> tuple[ChosenReward, str]:
    out = io.StringIO()
    prompts = with_values(policy) if prompts is None else prompts
    console = Console(file=out, width=400)
    found = choose_reward(policy, given, prompts, World(accelerated()), console, kept=kept)
    return found, out.getvalue().rstrip("\n")


@pytest.fixture
def decides(monkeypatch):
    """``decides(least, pieces, clear)``: from which correlation, pieces and undecided share on heads serve."""

    def set_to(least: float, pieces: int = 1, clear: float = 0.0) -> None:
        monkeypatch.setattr("cagsr.rewards.heads_found.FOLLOWS", least)
        monkeypatch.setattr("cagsr.rewards.heads_found.ENOUGH", pieces)
        monkeypatch.setattr("cagsr.rewards.heads_found.UNDECIDED", clear)

    return set_to


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_heads_that_follow_the_knockouts_make_it_attention_with_the_heads_that_attention_learns(
    name, decides
):
    decides(-1.0)
    policy, other = telling(name), telling(name)
    found, said = chosen(policy, config())
    reward = found.config.reward
    assert (reward.preset, reward.heads, reward.salience.kind) == ("attention-values", "learn", "pieces")
    prompts = with_values(policy)
    expected = find_heads(other, prompts, Pieces(prompts), SAMPLING, seed=3)
    assert found.heads is not None
    assert {key: found.heads[key] for key in expected} == expected
    assert isinstance(found.salience, Pieces)
    alone, _ = chosen(other, config("reward.preset=attention"))
    assert alone.heads == expected
    assert policy.readable.heads == other.readable.heads
    follows, pieces = expected["follows"], expected["pieces"]
    assert said == (
        f"reward: robust is attention-values for this base: its attention agrees with hiding {pieces} pieces one after "
        f"another ({follows:.2f}; -1.0 is needed), and hiding leaves it open whether a piece was taken up for "
        f"{expected['undecided']:.0%} of them (0% is needed)"
    )


@pytest.mark.parametrize(
    ("least", "pieces", "clear", "why"),
    [
        (1.01, 1, 0.0, "its attention agrees too little with hiding "),
        (-1.0, 1000, 0.0, "pieces are too few to tell its heads"),
        (-1.0, 1, 1.01, " of them (101% is needed)"),
    ],
)
def test_heads_that_do_not_or_cannot_tell_make_it_knockout_as_if_nothing_had_been_learnt(
    decides, least, pieces, clear, why
):
    decides(least, pieces, clear)
    policy = telling()
    before, weights, random = policy.readable, tiny.weights_of(policy), torch.get_rng_state()
    found, said = chosen(policy, config())
    reward = found.config.reward
    assert (reward.preset, reward.heads, reward.salience.kind) == ("knockout", "all", "uniform")
    assert isinstance(found.salience, Uniform)
    assert policy.readable == before
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert found.heads is not None
    assert found.heads["preset"] == "knockout"
    assert found.heads["weights"]
    assert said.startswith("reward: robust is knockout for this base: ")
    assert why in said


FOUND = {
    "follows": 0.8,
    "undecided": 0.3,
    "agreement": 0.3,
    "pieces": 23,
    "weights": {1: [1.0] * 5},
    "all": {1: [0.3] * 5},
}


def test_without_values_that_can_be_exchanged_it_is_attention_alone(monkeypatch):
    monkeypatch.setattr(chosen_reward, "find_heads", lambda *_, **__: FOUND)
    policy = telling()
    texts = ["artist alba , city lyon", "city porto , artist nova", "artist mira , city bern"]
    found, _ = chosen(policy, config(), prompts_of(policy, texts))
    assert found.config.reward.preset == "attention"
    assert found.salience.contrasts is None


@pytest.mark.parametrize(
    ("given", "sampling", "why"),
    [
        ([], {"temperature": 0.0}, "never differ in what they take up"),
        ([], {"candidates": 1}, "a prompt has a single candidate"),
        (["reward.heads=all"], {}, "reward.heads: all leaves no heads to be learnt"),
        # Knockouts cover what is named as well as attention would.
        (["reward.salience.kind=idf"], {"temperature": 0.0}, "never differ in what they take up"),
    ],
)
def test_where_nothing_can_be_told_it_is_knockout_and_says_why(decides, given, sampling, why):
    decides(-1.0)
    found, said = chosen(telling(), config(*given, **sampling))
    assert found.config.reward.preset == "knockout"
    assert found.heads is not None
    assert set(found.heads) == {"preset", "reason"}
    assert why in found.heads["reason"]
    assert said == f"reward: robust is knockout for this base: {found.heads['reason']}"


def test_prompts_without_pieces_of_their_own_are_for_knockouts_unless_pieces_were_asked_for():
    policy = telling()
    same = prompts_of(policy, [";"] * 5)
    found, _ = chosen(policy, config(), same)
    assert found.heads == {"preset": "knockout", "reason": "no prompt has a piece of its own"}
    with pytest.raises(InputError, match="salience pieces: none of 5 prompts"):
        chosen(policy, config("reward.salience.kind=pieces"), same)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"candidates": 1}])
def test_heads_that_are_to_be_learnt_and_cannot_be_are_an_error(sampling):
    with pytest.raises(NothingToldError, match="never differ"):
        chosen(telling(), config("reward.heads=learn", **sampling))


def test_a_salience_that_is_named_is_that_of_both(decides):
    for least, preset in ((-1.0, "attention"), (1.01, "knockout")):
        decides(least)
        found, _ = chosen(telling(), config("reward.salience.kind=idf"))
        assert found.config.reward.preset == preset
        assert isinstance(found.salience, Idf)


def test_a_run_goes_on_with_what_was_chosen_and_asks_nobody_again(tmp_path, decides, monkeypatch):
    kept = tmp_path / "heads.json"
    decides(-1.0)
    first = telling()
    served, _ = chosen(first, config(), kept=kept)
    assert not kept.exists()
    keep_heads(served.heads, kept)
    decides(1.01)
    monkeypatch.setattr(chosen_reward, "find_heads", None)
    again = telling()
    found, said = chosen(again, config(), kept=kept)
    assert found.config == served.config
    assert again.readable.heads == first.readable.heads
    assert said.endswith(f" of them (0% is needed) (as in {kept})")
    kept.write_text(json.dumps({"preset": "knockout", "reason": "so it was"}))
    found, said = chosen(telling(), config(), kept=kept)
    assert found.config.reward.preset == "knockout"
    assert said == f"reward: robust is knockout for this base: so it was (as in {kept})"


def test_heads_of_another_preset_decide_where_they_are_kept(tmp_path, decides):
    kept = tmp_path / "heads.json"
    learnt, _ = chosen(telling(), config("reward.preset=attention"))
    keep_heads(learnt.heads, kept)
    for least, preset in ((-1.0, "attention-values"), (1.01, "knockout")):
        decides(least)
        found, said = chosen(telling(), config(), kept=kept)
        assert found.config.reward.preset == preset
        assert said.endswith(f"(as in {kept})")


@pytest.mark.parametrize(
    ("changes", "preset"),
    [({}, "attention-values"), ({"follows": None}, "knockout"), ({"all": None}, "knockout")],
)
def test_a_file_of_heads_decides_by_what_it_says_and_is_read(tmp_path, decides, changes, preset):
    decides(-1.0)
    learnt, _ = chosen(telling(), config("reward.preset=attention"))
    assert learnt.heads is not None
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({key: changes.get(key, value) for key, value in learnt.heads.items()}))
    policy = telling()
    found, _ = chosen(policy, config(f"reward.heads={path}"))
    assert found.config.reward.preset == preset


def test_a_single_candidate_is_for_knockouts_which_read_the_heads_of_a_file(tmp_path, decides):
    decides(-1.0)
    learnt, _ = chosen(telling(), config("reward.preset=attention"))
    keep_heads(learnt.heads, path := tmp_path / "mine.json")
    policy, other = telling(), telling()
    found, said = chosen(policy, config(f"reward.heads={path}", candidates=1))
    assert found.config.reward.preset == "knockout"
    assert f"a prompt has a single candidate, which there is none to compare with (as in {path})" in said
    chosen(other, config("reward.preset=knockout", f"reward.heads={path}"))
    assert policy.readable.heads == other.readable.heads != telling().readable.heads


@pytest.mark.parametrize("how", ["kept", "named"])
def test_heads_of_a_run_that_chose_by_them_say_nothing_of_a_reward_that_is_named(tmp_path, how):
    learnt, _ = chosen(telling(), config("reward.preset=attention"))
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({**(learnt.heads or {}), "preset": "knockout", "reason": "so it was"}))
    given = [f"reward.heads={path}"] if how == "named" else []
    kept = path if how == "kept" else None
    found, _ = chosen(telling(), config("reward.preset=attention", *given), kept=kept)
    assert found.heads == json.loads(json.dumps(learnt.heads))


def test_a_damaged_file_of_a_run_says_how_to_go_on_and_one_without_reason_is_not_believed(tmp_path):
    kept = tmp_path / "heads.json"
    kept.write_text("{")
    with pytest.raises(
        InputError, match=r"heads\.json is no file of heads: .* remove it, and they are found"
    ):
        chosen(telling(), config(), kept=kept)
    kept.write_text('{"preset": "knockout"}')
    found, said = chosen(telling(), config(), kept=kept)
    assert found.heads is not None
    assert found.heads["reason"] == "2 pieces are too few to tell its heads from one another"
    assert "(as in" not in said


def test_any_other_reward_stays_and_says_what_it_reads(tmp_path):
    policy = telling()
    found, said = chosen(policy, config("reward.preset=coverage"))
    assert (found.config.reward.preset, found.heads, said) == ("coverage", None, "")
    learnt, said = chosen(policy, config("reward.preset=attention"))
    assert learnt.heads is not None
    read = sum(sum(row) for row in learnt.heads["weights"].values())
    assert said.startswith(
        f"heads: {read:.0f} are read, found by knockouts of {learnt.heads['pieces']} pieces, "
    )
    assert "Without labels that says: " in said
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"weights": learnt.heads["weights"]}))
    _, said = chosen(telling(), config("reward.preset=coverage", f"reward.heads={path}"))
    assert said == f"heads: those of {path} are read"


def test_the_choice_is_that_of_the_main_process(decides, monkeypatch):
    decides(-1.0)
    world = World(accelerated())
    monkeypatch.setattr(
        world,
        "by_main",
        lambda action: chosen_reward._Found({"preset": "knockout", "reason": "main said"}, ""),
    )
    policy = telling()
    found = choose_reward(policy, config(), with_values(policy), world, Console(quiet=True))
    assert found.config.reward.preset == "knockout"
