import math
import re
import sys

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.errors import InputError, SignalError
from cagsr.evaluation.score import chosen_reward
from cagsr.rewards.presets import (
    CHOICES,
    PRESETS,
    as_read,
    build_reward,
    choice_of,
    learns_heads,
    load_preset,
    possible,
    settled,
)
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Uniform
from cagsr.rewards.signals import SIGNALS, resolve
from cagsr.types import EVERYTHING, Wanted
from evidence import make_evidence, make_prompt, random_evidence


def constant(evidence, *, value=1.0):
    return torch.full((len(evidence.rollout.responses),), value)


def of(*terms, **extra):
    return Reward(terms, {"constant": constant, **extra})


# Measure


def test_measure_gives_one_column_a_term_in_their_order():
    evidence = random_evidence()
    reward = of(
        Term("length"), Term("coverage", options={"gate": True}), Term("constant", options={"value": 3})
    )
    measured = reward.measure(evidence)
    assert reward.names == ("length", "coverage", "constant")
    assert measured.shape == (15, 3)
    assert measured.dtype == torch.float32
    assert torch.equal(measured[:, 0], SIGNALS["length"](evidence))
    assert torch.equal(measured[:, 1], SIGNALS["coverage"](evidence, gate=True))
    assert measured[:, 2].eq(3).all()


def test_a_reward_wants_what_its_signals_read_and_for_one_of_the_users_own_everything():
    salience = Uniform()
    by_piece = of(Term("attended"), Term("surprise"), Term("unfinished")).wanted(salience)
    assert by_piece == Wanted(by_token=False, prompt_logprobs=False, pieces=salience.pieces)
    by_token = of(Term("attended"), Term("coverage")).wanted(salience)
    assert (by_token.by_token, by_token.prompt_logprobs) == (True, False)
    for everything in (of(Term("attended"), Term("grounding")), of(Term("attended"), Term("constant"))):
        assert everything.wanted(lambda rollout: rollout) == EVERYTHING


def test_a_signal_used_twice_has_two_names():
    assert of(Term("coverage"), Term("length"), Term("coverage")).names == (
        "coverage",
        "length",
        "coverage#2",
    )


def test_trap_24_a_measurement_carries_no_gradient():
    weight = torch.ones((), requires_grad=True)
    measured = of(Term("live"), live=lambda evidence: constant(evidence) * weight).measure(random_evidence())
    assert not measured.requires_grad


def one_bad(bad, row=8):
    def signal(evidence):
        values = constant(evidence)
        values[row] = bad
        return values

    return signal


@pytest.mark.parametrize(("bad", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_trap_22_a_value_that_is_not_finite_stops_and_names_signal_row_and_prompt(bad, said):
    evidence = random_evidence()
    for position, prompt in enumerate(evidence.rollout.prompts):
        object.__setattr__(prompt, "index", 40 + position)
    message = f"signal 'broken' is {said} in row 8 (prompt index 41, candidate 3)"
    with pytest.raises(SignalError, match=re.escape(message)):
        of(Term("length"), Term("broken"), broken=one_bad(bad)).measure(evidence)


def test_trap_22_a_value_beyond_float32_is_not_finite():
    def huge(evidence):
        return constant(evidence).double() * 1e300

    with pytest.raises(SignalError, match="signal 'huge' is inf in row 0"):
        of(Term("huge"), huge=huge).measure(random_evidence())


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned NoneType"),
        (0.0, "returned float"),
        ([0.0] * 15, "returned list"),
        (torch.zeros(()), "returned shape [] for 15 rows"),
        (torch.zeros(1), "returned shape [1] for 15 rows"),
        (torch.zeros(14), "returned shape [14] for 15 rows"),
        (torch.zeros(15, 1), "returned shape [15, 1] for 15 rows"),
        (torch.zeros(3), "returned shape [3] for 15 rows"),
        (torch.zeros(15, dtype=torch.complex64), "returned complex numbers"),
    ],
)
def test_trap_22_a_signal_of_the_wrong_type_or_shape_stops_and_is_named(returned, said):
    with pytest.raises(SignalError, match=re.escape(f"signal 'broken' {said}")):
        of(Term("broken"), broken=lambda evidence: returned).measure(random_evidence())


def test_trap_22_a_signal_that_raises_stops_and_is_named_with_its_reason():
    def broken(evidence):
        raise KeyError("slots")

    with pytest.raises(SignalError, match="signal 'broken' failed on 15 rows") as error:
        of(Term("broken"), broken=broken).measure(random_evidence())
    assert "(prompt indices 0 to 2): KeyError: 'slots'" in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)


def test_an_error_that_already_teaches_is_passed_on_as_it_is():
    def taught(evidence):
        raise InputError("row 5: no slots")

    with pytest.raises(InputError, match="row 5: no slots"):
        of(Term("taught"), taught=taught).measure(random_evidence())


def test_whole_and_logical_numbers_count_as_values():
    reward = of(
        Term("said"), Term("count"), said=lambda e: constant(e) > 0, count=lambda e: constant(e).long()
    )
    assert reward.measure(random_evidence()).eq(1).all()


# Combine


def combined(values, *terms, group_size):
    return of(*terms).combine(torch.tensor(values, dtype=torch.float32), group_size).tolist()


GROUP, BATCH, RAW = (Term("constant", weight=1.0, standardise=how) for how in ("group", "batch", "none"))


def test_raw_terms_are_added_by_weight():
    terms = Term("constant", weight=4.0, standardise="none"), Term("length", weight=-0.5, standardise="none")
    assert combined([[0.5, 2.0], [0.25, 0.0]], *terms, group_size=2) == pytest.approx([1.0, 1.0])


def test_group_standardisation_uses_mean_and_deviation_of_each_group():
    found = combined([[1.0], [2.0], [3.0], [0.0], [0.0], [30.0]], GROUP, group_size=3)
    unit = math.sqrt(1.5)
    half = math.sqrt(0.5)
    assert found == pytest.approx([-unit, 0, unit, -half, -half, 2 * half], abs=1e-4)


def test_batch_standardisation_uses_all_rows():
    found = combined([[1.0], [1.0], [3.0], [3.0]], BATCH, group_size=2)
    assert found == pytest.approx([-1, -1, 1, 1], abs=1e-4)


def test_terms_of_different_scale_count_alike_once_standardised():
    values = [[1000.0, 0.3], [2000.0, 0.2], [3000.0, 0.1]]
    terms = Term("length"), Term("coverage")
    assert combined(values, *terms, group_size=3) == pytest.approx([0, 0, 0], abs=1e-4)


@pytest.mark.parametrize(
    "values", [[5.0] * 3, [0.0] * 3, [0.1, 0.1 + 1e-8, 0.1], [-7e4, -7e4 + 0.0078, -7e4]]
)
def test_trap_19_a_group_without_spread_gets_exactly_zero(values):
    assert combined([[value] for value in values], GROUP, group_size=3) == [0.0] * 3


def test_trap_19_a_group_of_one_gets_exactly_zero():
    assert combined([[3.0], [5.0]], GROUP, group_size=1) == [0.0, 0.0]


def test_standardisation_keeps_double_precision_inside():
    found = combined([[1000.0], [1000.25], [1001.0]], GROUP, group_size=3)
    deviation = math.sqrt(26 / 9) / 4
    assert found == pytest.approx([-5 / 12 / deviation, -1 / 6 / deviation, 7 / 12 / deviation], abs=5e-6)


def test_trap_19_a_group_beside_huge_values_keeps_its_own_spread():
    alone = combined([[0.1], [0.2], [0.3]], GROUP, group_size=3)
    assert combined([[0.1], [0.2], [0.3], [1e9], [2e9], [3e9]], GROUP, group_size=3)[:3] == alone
    assert alone[2] == pytest.approx(math.sqrt(1.5), abs=1e-4)


def test_a_small_but_real_spread_is_not_lost():
    found = combined([[0.0100], [0.0104], [0.0102]], GROUP, group_size=3)
    assert found == pytest.approx([-math.sqrt(1.5), math.sqrt(1.5), 0], abs=0.02)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), groups=st.integers(1, 13), size=st.integers(2, 11), data=st.data())
def test_trap_19_a_groups_reward_is_the_same_to_the_bit_wherever_it_sits(seed, groups, size, data):
    values = torch.randn(groups * size, 3, generator=torch.Generator().manual_seed(seed))
    reward = of(
        Term("coverage"), Term("length", weight=0.3), Term("constant", weight=2.0, standardise="none")
    )
    together = reward.combine(values, size)
    first = data.draw(st.integers(0, groups - 1))
    last = data.draw(st.integers(first + 1, groups))
    part = slice(first * size, last * size)
    assert torch.equal(reward.combine(values[part], size), together[part])


def test_combine_names_a_value_that_is_not_finite():
    with pytest.raises(SignalError, match="signal 'length' is nan in row 1"):
        combined([[0.0, 0.0], [0.0, math.nan]], RAW, Term("length"), group_size=2)


@pytest.mark.parametrize(("shape", "size"), [((6, 2), 3), ((5, 1), 3)])
def test_combine_refuses_another_shape(shape, size):
    with pytest.raises(ValueError, match="expected"):
        of(GROUP).combine(torch.zeros(shape), size)


# Names and options, before any model loads


def test_an_unknown_signal_gets_a_suggestion():
    with pytest.raises(InputError, match="unknown signal 'covrage'; did you mean 'coverage'"):
        of(Term("covrage"))


def test_the_oracle_needs_a_task():
    with pytest.raises(InputError, match="'oracle' is the task's own checker"):
        Reward(load_preset("oracle"))
    assert Reward(load_preset("oracle"), {"oracle": constant}).names == ("oracle",)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "import torch\n"
        "def brevity(evidence, *, scale: float = 1.0): return -scale * evidence.rollout.lengths.float()\n"
        "number = 5\n"
    )
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("my_rewards", "my_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("user_module")
def test_a_users_function_is_found_by_its_dotted_path():
    reward = Reward([Term("my_rewards.brevity", options={"scale": 2.0})])
    evidence = make_evidence(torch.zeros(2, 5, 3), lengths=[3, 5])
    assert reward.names == ("my_rewards.brevity",)
    assert reward.measure(evidence).tolist() == [[-6.0], [-10.0]]


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_rewards.brevit", "module 'my_rewards' has no 'brevit'; did you mean 'brevity'?"),
        ("my_rewards.number", "is of type int, not a function"),
        ("no_such_module.signal", "cannot import 'no_such_module'"),
        ("my_broken.signal", "cannot import 'my_broken': ZeroDivisionError"),
        (".relative", "cannot import ''"),
    ],
)
def test_a_dotted_path_that_leads_nowhere_says_why(path, said):
    with pytest.raises(InputError, match=re.escape(said)):
        resolve(path)


def needs(evidence, *, limit):
    return constant(evidence) * limit


def takes_all(evidence, **options):
    return constant(evidence)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("coverage", {"gat": True}, "signal 'coverage' has no option 'gat'; did you mean 'gate'?"),
        ("unfinished", {"gate": True}, "signal 'unfinished' has no option 'gate'; it takes none"),
        ("coverage", {"gate": "yes"}, "signal 'coverage': option 'gate' is 'yes'"),
        ("coverage", {"saturation": "maxx"}, "signal 'coverage': option 'saturation' is 'maxx'"),
        ("coverage", {"cap": 0.0}, "signal 'coverage': option 'cap' is 0.0"),
        ("coverage", {"evidence": None}, "signal 'coverage' has no option 'evidence'"),
        ("repetition", {"n": 0}, "signal 'repetition': option 'n' is 0"),
        ("repetition", {"n": 2.5}, "signal 'repetition': option 'n' is 2.5"),
        ("focus", {"clamp": [0.9, 0.1]}, "signal 'focus': option 'clamp' is [0.9, 0.1]"),
        ("focus", {"clamp": [0.1]}, "signal 'focus': option 'clamp' is [0.1]"),
        ("surprise", {"width": 0}, "signal 'surprise': option 'width' is 0"),
        ("needs", {}, "signal 'needs' needs its option 'limit'"),
        ("nothing", {}, "signal 'nothing' takes no arguments"),
    ],
)
def test_a_wrong_option_is_named_with_its_signal(name, options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        of(Term(name, options=options), needs=needs, nothing=lambda: None)


def test_right_options_pass():
    reward = of(
        Term("focus", options={"clamp": [0, 1], "direction": "high_entropy"}),
        Term("focus", options={"clamp": None}),
        Term("coverage", options={"cap": 2}),
        Term("needs", options={"limit": "any"}),
        Term("takes_all", options={"whatever": 1}),
        needs=needs,
        takes_all=takes_all,
    )
    assert reward.names == ("focus", "focus#2", "coverage", "needs", "takes_all")


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"signal": ""}, "signal\n  String should have at least 1 character"),
        ({"signal": "length", "weight": math.nan}, "weight\n  Input should be a finite number"),
        ({"signal": "length", "weight": "4"}, "weight\n  Input should be a valid number"),
        ({"signal": "length", "weight": True}, "weight\n  Input should be a valid number"),
        (
            {"signal": "length", "standardise": "grup"},
            "standardise\n  Input should be 'group', 'batch' or 'none'",
        ),
        ({"signal": "length", "options": ["n"]}, "options\n  Input should be a valid dictionary"),
        ({"signal": "length", "wieght": 2}, "wieght\n  Extra inputs are not permitted"),
    ],
)
def test_a_wrong_term_says_what_was_expected(term, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        Term(**term)


def test_a_reward_of_nothing_is_refused():
    with pytest.raises(InputError, match="no terms"):
        Reward([])


# Presets


def test_every_preset_is_a_reward():
    assert set(PRESETS) >= {"robust", "paper", "lexical", "oracle", "self-certainty", "length"}
    evidence = random_evidence()
    for name in PRESETS:
        reward = Reward(load_preset(name), {"oracle": constant})
        assert reward.combine(reward.measure(evidence), 5).isfinite().all()


def test_the_paper_preset_is_the_literal_raw_sum():
    terms = load_preset("paper")
    assert [(term.signal, term.weight, term.standardise) for term in terms] == [
        ("mass", 1.0, "none"),
        ("focus", 1.0, "none"),
        ("repetition", 1.0, "none"),
    ]


def test_a_preset_of_ones_own_is_read_from_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("about: mine\nterms:\n  - signal: length\n    weight: -2\n    standardise: none\n")
    assert load_preset(path) == load_preset(str(path)) == [Term("length", weight=-2, standardise="none")]


def test_a_preset_file_is_read_as_a_config_is(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("terms:\n  - {signal: length, weight: 1e-1, standardise: none}\n")
    assert load_preset(path) == [Term("length", weight=0.1, standardise="none")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- signal: length\n", "mine.yaml:1 expected a mapping of keys, got list"),
        (
            "terms: 5\n",
            "mine.yaml:1 terms: got 5, expected a list, each a mapping with the keys signal, weight",
        ),
        (
            "terms: [length]\n",
            'mine.yaml:1 terms.0: got "length", expected a mapping with the keys signal, weight',
        ),
        (
            "terms:\n  - {signal: length, wieght: 2}\n",
            "mine.yaml:2 unknown key 'wieght'; did you mean 'weight'?",
        ),
        (
            "terms:\n  - {signal: length}\n  - {signal: length, weight: .inf}\n",
            "mine.yaml:3 terms.1.weight: got Infinity, expected a number",
        ),
        ("terms:\n  - {signal: length, signal: mass}\n", "mine.yaml:2 duplicate key 'signal'"),
        ("terms: [", "mine.yaml:1 broken YAML"),
        ("terms: !!python/object/apply:os.getcwd []\n", "mine.yaml:1 tag"),
        ("? [a]\n: 1\n", "mine.yaml:1 a key must be a word"),
    ],
)
def test_a_broken_preset_file_is_named_with_its_fault(tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        load_preset(path)
    assert said in str(error.value)


def test_an_unknown_preset_gets_a_suggestion_and_a_missing_file_its_reason(tmp_path):
    with pytest.raises(InputError, match="unknown preset 'robus'; did you mean 'robust'"):
        load_preset("robus")
    with pytest.raises(InputError, match="no such file"):
        load_preset(tmp_path / "none.yaml")


def test_presets_survive_a_round_trip_through_yaml():
    dumped = yaml.safe_dump([term.model_dump() for term in load_preset("robust")])
    assert [Term(**entry) for entry in yaml.safe_load(dumped)] == load_preset("robust")


def test_the_prompts_of_the_factory_have_offsets_for_every_token():
    prompt = make_prompt("a b, c")
    assert len(prompt.offsets) == len(prompt.ids)


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        (["reward.preset=knockout"], ("all", "uniform")),
        (["reward.preset=attention"], ("learn", "pieces")),
        (["reward.preset=attention", "reward.heads=all"], ("all", "pieces")),
        (["reward.preset=attention", "reward.salience.kind=idf"], ("learn", "idf")),
        (["reward.preset=attention", "reward.terms=[{signal: length}]"], ("all", "uniform")),
        (["reward.preset={place}/mine.yaml"], ("learn", "uniform")),
    ],
)
def test_what_is_read_is_what_the_config_says_and_else_the_preset(tmp_path, settings, read):
    (tmp_path / "mine.yaml").write_text("heads: learn\nterms: [{signal: length}]")
    given = [setting.replace("{place}", str(tmp_path)) for setting in settings]
    config = as_read(Config.load(None, ["data.task=slots", *given]))
    assert (config.reward.heads, config.reward.salience.kind) == read
    assert as_read(config) == config


def config_of(*settings: str) -> Config:
    return Config.load(None, ["data.task=slots", *settings])


def test_a_choice_is_read_as_nothing_until_it_is_settled_and_then_keeps_what_was_named():
    config = config_of()
    assert as_read(config) == config
    assert choice_of(config) == CHOICES["robust"]
    attention = settled(config, "attention").reward
    assert (attention.preset, attention.heads, attention.salience.kind) == ("attention", "learn", "pieces")
    named = settled(config_of("reward.heads=all", "reward.salience.kind=idf"), "attention").reward
    assert (named.heads, named.salience.kind) == ("all", "idf")
    assert choice_of(config_of("reward.preset=knockout")) is None
    assert choice_of(config_of("reward.terms=[{signal: length}]")) is None


def test_a_choice_is_checked_for_all_that_it_may_become():
    names = [each.reward.preset for each in possible(config_of())]
    assert names == ["knockout", "attention", "attention-values"]
    alone = config_of("sampling.candidates=1", "algorithm.name=ppo")
    assert [each.reward.preset for each in possible(alone)] == ["knockout"]
    assert possible(config_of("reward.preset=attention")) == [as_read(config_of("reward.preset=attention"))]


def test_what_a_choice_names_is_there_and_learns_its_heads_where_it_is_to_follow_them():
    for choice in CHOICES.values():
        assert {choice.attention, choice.values, choice.knockouts} <= set(PRESETS) - set(CHOICES)
        assert (learns_heads(choice.attention), learns_heads(choice.values)) == (True, True)
        assert not learns_heads(choice.knockouts)
        assert "swapped" in [term.signal for term in load_preset(choice.values)]


def test_where_no_base_is_sampled_a_choice_stands_for_its_knockouts():
    assert load_preset("robust") == load_preset("knockout")
    assert chosen_reward("robust", None).terms == tuple(load_preset("knockout"))
    assert build_reward(config_of().reward, None).terms == tuple(load_preset("knockout"))


def test_a_preset_that_reads_learnt_heads_scores_nothing_by_itself():
    with pytest.raises(InputError, match="'attention' reads heads that are learnt"):
        chosen_reward("attention", None)
    assert chosen_reward("coverage", None).names == chosen_reward("x", load_preset("coverage")).names
