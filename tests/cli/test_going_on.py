"""`model.lora.path`: training goes on from an adapter that PEFT or another run saved, and is measured against it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import tiny
from cagsr.config import Config
from cagsr.config.schema import AlgorithmSettings
from cagsr.errors import InputError
from cagsr.evaluation.heads_cache import HeadsCache
from cagsr.io.adapters import Base, other_base
from cagsr.io.provenance import identity
from cagsr.models.load_policy import load_policy
from cagsr.models.reference import Reference
from cagsr.planning.plan import REFERENCE, plan
from cagsr.rewards.salience import Uniform
from cagsr.runs.identity import of_configured
from cagsr.training.algorithms import Algorithm
from cagsr.training.kl import KLController
from fake_vllm import FakeVLLM

WEIGHTS = "adapter_model.safetensors"


def save_adapter(base: Path, directory: Path, std: float = 0.3, **settings: object) -> Path:
    """An adapter as PEFT alone trains and saves it, with dropout; of rank 3, and 7 / 3 times its product."""
    loader = AutoModelForSeq2SeqLM if base.name == "t5" else AutoModelForCausalLM
    targets = ["q", "wi_0"] if base.name == "t5" else ["q_proj", "down_proj"]
    torch.manual_seed(5)
    given = {"r": 3, "lora_alpha": 7, "lora_dropout": 0.1, "target_modules": targets, **settings}
    adapted = peft.get_peft_model(loader.from_pretrained(base), peft.LoraConfig(**given))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=std)
    adapted.save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(models, tmp_path):
    return save_adapter(models / "llama", tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True}),
        ("t5", {"use_rslora": True, "rank_pattern": {"q": 5}}),
    ],
)
def test_the_start_and_the_reference_are_base_and_adapter_as_peft_computes_them(
    models, tmp_path, name, settings
):
    directory = save_adapter(models / name, tmp_path / "adapter", **settings)
    policy = load_policy(models / name, lora={"path": str(directory)})
    reference, (prompt,) = Reference(policy), tiny.prompts(policy, (7,))
    rollout = policy.sample([prompt], tiny.SHORT, seed=3)
    assert torch.equal(reference.logprobs(rollout), policy.logprobs(rollout))
    loader = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    plain = loader.from_pretrained(models / name, dtype=torch.float64)
    exact = peft.PeftModel.from_pretrained(plain, directory, autocast_adapter_dtype=False).double().eval()
    written = rollout.response_ids[0][rollout.response_mask[0]].tolist()
    with torch.no_grad():
        logits = exact(**tiny.inputs_of(policy, prompt, written)).logits[0].log_softmax(-1)
    first = 0 if name == "t5" else len(prompt.ids) - 1
    expected = logits[first : first + len(written)].gather(1, torch.tensor(written)[:, None])[:, 0]
    found = reference.logprobs(rollout)[0, : len(written)]
    assert torch.allclose(found.double(), expected, atol=1e-4)
    with exact.disable_adapter(), torch.no_grad():
        base = exact(**tiny.inputs_of(policy, prompt, written)).logits[0].log_softmax(-1)
    assert (base - logits).abs().max() > 0.1
    # All but the adapter is there once.
    shared = {id(weight) for weight in policy.parameters()}
    assert reference.copy is not None
    copied = [key for key, weight in reference.copy.named_parameters() if id(weight) not in shared]
    assert copied == [key for key, weight in policy.named_parameters() if weight.requires_grad]
    assert all(".lora_" in key for key in copied)
    assert policy.model.peft_config["default"].r == 3  # type: ignore[index]


def weights_after(models: Path, adapter: Path, separate: str | None) -> tuple[dict[str, torch.Tensor], float]:
    """The adapter after two steps with a strong KL penalty, and the KL of the first.

    ``separate`` names what is the reference: None, `Reference` as it is made; "start", a model that was loaded by
    itself and is never trained; "base", such a one without the adapter.
    """
    policy = load_policy(models / "llama", lora={"path": str(adapter)})
    given = {}
    if separate is not None:
        given["reference"] = Reference(policy)
        lora = {"path": str(adapter)} if separate == "start" else None
        other = load_policy(models / "llama", lora=lora).requires_grad_(False)
        given["reference"]._policy, given["reference"].copy = other, None
        given["reference"]._adapter_off = None
    step = tiny.make_step(
        policy,
        algorithm=Algorithm(AlgorithmSettings(kl_coefficient=2.0)),
        kl_controller=KLController(2.0),
        salience=Uniform(),
        **given,
    )
    prompts = tiny.prompts(policy)
    kl = 0.0
    for seed in (0, 1):
        row = step.update(step.collect(prompts, seed).batches)
        kl = row["kl"] if seed == 0 else kl
    return {name: value for name, value in tiny.weights_of(policy).items() if ".lora_" in name}, kl


def test_steps_are_to_the_bit_those_against_a_separate_model_that_is_never_trained(models, adapter):
    (own, kl), (separate, _), (against_base, far) = (
        weights_after(models, adapter, kind) for kind in (None, "start", "base")
    )
    assert kl == 0.0
    assert far > 0.01
    for name, weight in own.items():
        assert torch.equal(weight, separate[name]), name
        assert not torch.equal(weight, against_base[name]), name


def rows() -> list[dict[str, float]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def steps() -> list[dict[str, float]]:
    return [row for row in rows() if "kl" in row]


@pytest.fixture
def go_on(train, adapter):
    """``go_on("key=value", ...)``: two steps on ``slots`` from the adapter, in ``run``."""
    settings = [f"model.lora={{path: {adapter}}}", "train.learning_rate=0.01", "train.save_every=1"]
    return lambda *more: train(*settings, *more, model="llama")


def test_the_result_is_the_adapter_trained_further_and_a_run_goes_on_to_the_same_bits(
    go_on, train, cagsr, adapter, models
):
    for outcome in (
        go_on("run.directory=whole", "train.evaluate_every=1"),
        go_on("train.steps=1", "train.evaluate_every=1"),
        go_on("--resume", "--accept-changes", "train.evaluate_every=1"),
    ):
        assert outcome.code == 0, outcome.err
    start, whole, resumed = (
        load_file(f"{place}/{WEIGHTS}") for place in (adapter, "whole/model", "run/model")
    )
    assert whole.keys() == start.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert all(0 < (weight - start[name]).abs().max() < 0.1 for name, weight in whole.items())
    assert steps()[0]["kl"] == 0.0
    assert rows()[0]["evaluation/reward"] == 0.0  # of the start, against the start
    saved = json.loads(Path("run/model/adapter_config.json").read_text())
    before = json.loads((adapter / "adapter_config.json").read_text())
    kept = ("r", "lora_alpha", "lora_dropout", "use_rslora", "task_type", "peft_type")
    assert {key: saved[key] for key in kept} == {key: before[key] for key in kept}
    assert sorted(saved["target_modules"]) == sorted(before["target_modules"])
    assert saved["base_model_name_or_path"] == str((models / "llama").resolve())
    place = "/".join(adapter.parts[-2:])
    assert f"llama` with the adapter `{place}` after 2 steps of" in Path("run/model/README.md").read_text()
    lora = Config.load("run/config.yaml").model.lora
    assert lora is not None
    assert (lora.path, lora.beside_path) == (str(adapter), [])
    # Base and both adapters, as the run's own policy had them, merged.
    for name in ("run", "run/checkpoints/step-000002"):
        assert cagsr("export", name, f"from-{Path(name).name}").code == 0
    one, other = (load_file(f"from-{name}/model.safetensors") for name in ("run", "step-000002"))
    assert all(torch.allclose(weight, other[name], atol=1e-6) for name, weight in one.items())
    delta = 7 / 3 * whole["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    delta = delta @ whole["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    base = load_file(models / "llama/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(one["model.layers.0.self_attn.q_proj.weight"], base + delta, atol=1e-6)
    # The adapter is a part of what the run stands on, wherever it lies.
    moved = shutil.move(adapter, adapter.with_name("moved"))
    again = train(
        "--resume", f"model.lora.path={moved}", "train.learning_rate=0.01", "train.save_every=1",
        "train.evaluate_every=1", model="llama",
    )  # fmt: skip
    assert "nothing to do" in again.out
    refused = train("--resume", "model.lora={r: 3}", "train.learning_rate=0.01", model="llama")
    assert refused.code == 2
    assert "adapter at the start" in refused.err
    held = load_file(Path(moved) / WEIGHTS)
    save_file({name: weight + 1 for name, weight in held.items()}, Path(moved) / WEIGHTS)
    refused = train("--resume", f"model.lora.path={moved}", "train.learning_rate=0.01", model="llama")
    assert refused.code == 2
    assert "adapter at the start" in refused.err


def test_a_run_goes_on_from_anothers_best_and_eval_measures_both(go_on, train, cagsr, small, models):
    assert go_on("train.steps=1", "train.evaluate_every=1").code == 0
    settings = ["model.lora.path=run/best", "run.directory=second", "train.learning_rate=0.01"]
    assert train(*settings, model="llama").code == 0
    (start,) = {
        json.loads(Path(f"{run}/run.json").read_text())["identity"]["model"] for run in ("run", "second")
    }
    assert start is not None
    asked = cagsr(
        "eval", f"base={models / 'llama'}", "first=run/model", "second=second/model",
        *small, "data.task=slots", "model.lora.path=run/best", "--json",
    )  # fmt: skip
    assert asked.code == 0, asked.err
    assert {*json.loads(asked.out)["models"]} == {"base", "first", "second"}


def test_four_bits_take_it_too(go_on, adapter):
    assert go_on("model.load_in_4bit=true").code == 0
    start, trained = load_file(adapter / WEIGHTS), load_file(f"run/model/{WEIGHTS}")
    assert all(0 < (weight - start[name]).abs().max() < 0.1 for name, weight in trained.items())
    assert steps()[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_vllm_is_handed_the_adapter_of_the_start_first(go_on, adapter, models):
    with FakeVLLM(AutoModelForCausalLM.from_pretrained(models / "llama")) as server:
        server.name = str(models / "llama")
        outcome = go_on(*server.settings)
        assert outcome.code == 0, outcome.err
        first, start = server.loaded[0], load_file(adapter / WEIGHTS)
    assert len(server.loaded) == 2
    assert sorted(weight.sum().item() for weight in first.values()) == sorted(
        weight.sum().item() for weight in start.values()
    )


def test_a_rounded_copy_writes_with_the_adapter_merged_from_the_start(go_on):
    outcome = go_on("sampling.dtype=bfloat16", "train.steps=1")
    assert outcome.code == 0, outcome.err
    assert steps()[0]["importance"] == pytest.approx(1, abs=0.05)


def test_supervised_training_goes_on_from_it(cagsr, small, models, adapter):
    settings = ["data.task=slots", f"model.name={models / 'llama'}", f"model.lora.path={adapter}"]
    settings += ["sft.steps=1", "sft.learning_rate=0.01", "sft.max_reference_tokens=11", "sft.directory=sft"]
    assert cagsr("sft", *small, *settings).code == 0
    start, trained = load_file(adapter / WEIGHTS), load_file(f"sft/model/{WEIGHTS}")
    assert all(0 < (weight - start[name]).abs().max() < 0.1 for name, weight in trained.items())


def test_a_plan_counts_the_adapter_twice_and_the_base_once(models, adapter):
    settings = ["data.task=slots", f"model.name={models / 'llama'}", "data.max_prompt_tokens=11"]
    settings += ["sampling.max_new_tokens=7", "sampling.candidates=2", "train.prompts_per_step=2"]
    config = Config.load(None, [*settings, "data.evaluation_count=2", f"model.lora.path={adapter}"])
    held = sum(weight.nbytes for weight in load_file(adapter / WEIGHTS).values())
    for phase in plan(config).phases:
        assert phase.parts[REFERENCE] == held
        assert phase.parts["optimizer moments"] == 2 * held


def test_learnt_heads_are_another_adapters_no_more(models, adapter):
    policy = load_policy(models / "llama")
    settings = ["data.task=slots", f"model.name={models / 'llama'}"]
    configs = [Config.load(None, [*settings, *more]) for more in ([], [f"model.lora.path={adapter}"])]
    paths = [HeadsCache(of_configured(each), policy, each, [], Uniform()).path for each in configs]
    assert None not in paths
    assert paths[0] != paths[1]


def edited(adapter: Path, **keys: object) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return adapter


def without_weights(adapter: Path) -> Path:
    (adapter / WEIGHTS).unlink()
    return adapter


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.with_name("no"),
            r"no is no adapter \(it has no adapter_config.json\); name a directory",
        ),
        (lambda a: a.parent, r"is no adapter .*; name one of those in it: adapter$"),
        (without_weights, "has no adapter_model.safetensors; save it again"),
        (
            lambda a: edited(a, base_model_name_or_path="gpt2"),
            r"is no adapter of .*llama: .* names gpt2\. Set model",
        ),
        (lambda a: edited(a, base_model_name_or_path=None), r"is no adapter of .*llama: .* names no base"),
        (
            lambda a: edited(a, bias="all"),
            r"has bias: 'all' and cannot be gone on from; merge it into its base",
        ),
        (lambda a: edited(a, modules_to_save=["lm_head"]), "has modules_to_save: .'lm_head'. and cannot be"),
        (lambda a: edited(a, init_lora_weights="pissa"), "has init_lora_weights: 'pissa' and cannot"),
        (lambda a: edited(a, of_a_newer_peft=7), "(has of_a_newer_peft: 7 and cannot|Unexpected keyword)"),
        (lambda a: edited(a, task_type="SEQ_CLS"), "has task_type: 'SEQ_CLS' and cannot"),
        (lambda a: edited(a, r=5), r"does not fit its base .*llama: size mismatch.* Name .* as model.name\."),
        (lambda a: edited(a, target_modules=["q_proj"]), "has, but not its base, a place for"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_by_name(models, adapter, change, message):
    with pytest.raises(InputError, match=rf"(?s)^model\.lora\.path: .*{message}"):
        load_policy(models / "llama", lora={"path": str(change(adapter))})


def test_an_adapter_of_another_kind_is_named(models, tmp_path):
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(models / "llama"), peft.LoHaConfig(target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        InputError, match=r"is an adapter of kind LOHA, and LoRA can be gone on from; merge it"
    ):
        load_policy(models / "llama", lora={"path": str(tmp_path / "adapter")})


def test_an_adapter_as_the_base_a_loaded_model_and_another_base_are_refused(models, adapter, variant):
    with pytest.raises(InputError, match=r"model\.name is an adapter as well"):
        load_policy(adapter, lora={"path": str(adapter)})
    loaded = AutoModelForCausalLM.from_pretrained(models / "llama")
    with pytest.raises(InputError, match=r"^lora\.path: .* peft\.PeftModel\.from_pretrained"):
        load_policy(loaded, lora={"path": str(adapter)})
    # One of this package's knows its base by the weights, wherever that lies.
    with_digest = adapter / "base.json"
    with_digest.write_text(json.dumps({"name": "elsewhere", "revision": None, "sha256": 64 * "a"}))
    with pytest.raises(InputError, match=r"trained on weights aaaaaaaaaaaa\.\.\., and these are"):
        load_policy(models / "llama", lora={"path": str(adapter)})
    same = load_policy(models / "llama", lora={"r": 2}).base
    assert same is not None
    with_digest.write_text(json.dumps({"name": "elsewhere", "revision": None, "sha256": same.sha256}))
    assert load_policy(variant("llama"), lora={"path": str(adapter)}).base is not None


def spoiled(adapter: Path, file: str, change: Callable[[bytes], bytes]) -> Path:
    path = adapter / file
    path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    return adapter


def not_finite(adapter: Path) -> Path:
    weights = load_file(adapter / WEIGHTS)
    weights[min(weights)][0, 0] = torch.nan
    save_file(weights, adapter / WEIGHTS, {"format": "pt"})
    return adapter


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda at: spoiled(at, WEIGHTS, lambda held: held[:-7]),
            f"{WEIGHTS} cannot be read: .*; save it again",
        ),
        (
            lambda at: spoiled(at, "generation_config.json", lambda _: b"{"),
            "generation_config.json cannot be read",
        ),
        (lambda at: edited(at, base_model_name_or_path=7), "names no base. Set model.name to its base"),
        (not_finite, r"has weights that are not finite \(.*lora_A.*\); name an earlier one"),
    ],
)
def test_a_damaged_adapter_is_named_and_not_its_base(models, adapter, change, message):
    with pytest.raises(InputError, match=message):
        load_policy(models / "llama", lora={"path": str(change(adapter))})


def test_a_base_that_the_hub_has_not_sent_yet_is_told_once_it_is_here(models, adapter, monkeypatch):
    (adapter / "base.json").write_text(json.dumps({"name": "x", "revision": "aaaa", "sha256": 64 * "b"}))
    snapshot = models / "llama"
    early = Base("me/other", "cccc", None)
    assert other_base(adapter, early) is None
    assert "trained on weights aaaa..., and these are cccc..." in str(
        other_base(adapter, replace(early, sha256="d" * 64))
    )
    assert identity(str(adapter.parent))["sha256"] is None  # a directory without weights has no digest
    assert identity(str(snapshot))["sha256"] is not None
    # What is saved beside a result is the digest of the weights that were loaded.
    asked = iter([Base(str(snapshot), None, None), Base(str(snapshot), None, 64 * "b")])
    monkeypatch.setattr("cagsr.models.lora_start.base_at", lambda *_: next(asked))
    policy = load_policy(snapshot, lora={"path": str(adapter)})
    assert policy.base is not None
    assert policy.base.sha256 == 64 * "b"


def test_a_plan_keeps_the_layers_that_an_adapter_tells_apart(models, tmp_path):
    deep = tmp_path / "deep"
    policy = tiny.policy("llama", shape={"layers": 6})
    policy.model.save_pretrained(deep)
    policy.tokenizer.save_pretrained(deep)
    settings = [
        "data.task=slots",
        f"model.name={deep}",
        "data.max_prompt_tokens=11",
        "data.evaluation_count=2",
    ]
    settings += ["sampling.max_new_tokens=7", "sampling.candidates=2", "train.prompts_per_step=2"]
    for name, given in (
        ("late", {"layers_to_transform": [4, 5]}),
        ("wide", {"rank_pattern": {"layers.3.self_attn.q_proj": 11}}),
    ):
        directory = save_adapter(deep, tmp_path / name, **given)
        held = sum(weight.nbytes for weight in load_file(directory / WEIGHTS).values())
        phases = plan(Config.load(None, [*settings, f"model.lora.path={directory}"])).phases
        assert {phase.parts[REFERENCE] for phase in phases} == {held}


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"use_dora": True}, ["sampling.dtype=bfloat16"], "is a DoRA adapter, and sampling.dtype merges"),
        ({"use_dora": True}, ["sampling.engine=vllm"], "is a DoRA adapter, and sampling.engine: vllm takes"),
        (
            {"rank_pattern": {"q_proj": 5}},
            ["sampling.engine=vllm"],
            "sampling.engine: vllm scales all modules",
        ),
        ({"alpha_pattern": {"q_proj": 5}}, ["sampling.engine=vllm"], "this one has a alpha_pattern"),
        ({}, ["model.lora.r=16"], "model.lora.r: the adapter that model.lora.path leads to has settings"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_a_model_loads(
    train, models, tmp_path, monkeypatch, settings, given, message
):
    directory = save_adapter(models / "llama", tmp_path / "adapter", **settings)
    monkeypatch.setattr("cagsr.models.load.AutoModelForCausalLM", None)
    outcome = train(f"model.lora.path={directory}", *given, model="llama")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not Path("run").exists()


def test_compare_names_it(cagsr, small, adapter):
    outcome = cagsr("compare", *small, "data.task=slots", f"model.lora.path={adapter}")
    assert outcome.code == 2
    assert "model.lora.path: systems are compared on a whole base" in outcome.err
