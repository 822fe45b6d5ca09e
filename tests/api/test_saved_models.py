"""Every save, loaded again by cagsr and by plain transformers or PEFT: its logits are those that it had in memory."""

import json
import shutil
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from cagsr.errors import InputError, UnsupportedModelError
from cagsr.models.from_scratch import new_model
from cagsr.models.load import load_model, load_tokenizer, save_model
from cagsr.models.load_policy import load_policy
from hub_cache import COMMITS, HubCache

IDS = torch.tensor([[3, 5, 7, 11, 13, 17, 19, 23]])
KINDS = {"llama": AutoModelForCausalLM, "tied": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


@pytest.fixture(scope="module")
def bases(models, tmp_path_factory):
    """``llama`` and ``t5`` (with dropout), and ``tied``: a llama whose head is its embedding."""
    root = tmp_path_factory.mktemp("bases")
    for name in ("llama", "t5"):
        shutil.copytree(models / name, root / name)
    shutil.copytree(models / "llama", root / "tied")
    model = AutoModelForCausalLM.from_pretrained(models / "llama", tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0))
    model.save_pretrained(root / "llama")
    for name, rates in (("llama", {"attention_dropout": 0.3}), ("t5", {"dropout_rate": 0.1})):
        path = root / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | rates))
    return root


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        return model.eval()(input_ids=IDS, **more).logits.float()


def close(one, other, share=1e-4):
    """Equal but for a ``share`` of the largest: merging and another attention kernel round in another order."""
    assert (one - other).abs().max() <= share * other.abs().max()


def stirred(model: Any) -> Any:
    """The model with weights of its adapter that change what it says; they begin as nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "delta" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def adapted(model, *targets, **settings):
    config = peft.LoraConfig(r=2, target_modules=[*targets], task_type="CAUSAL_LM", **settings)
    return stirred(peft.get_peft_model(model, config))


def plain(directory, kind: Any = AutoModelForCausalLM) -> Any:
    return kind.from_pretrained(directory, attn_implementation="eager")


@pytest.mark.parametrize("name", KINDS)
def test_whole_weights_come_back_with_their_dropout(bases, name, tmp_path):
    policy = load_policy(bases / name, critic=True)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.01)
    save_model(policy, tmp_path / "saved")
    expected = logits(policy.model)
    close(logits(load_policy(tmp_path / "saved").model), expected, 0)
    again = plain(tmp_path / "saved", KINDS[name])
    close(logits(again), expected)
    before = plain(bases / name, KINDS[name]).config
    for rate in ("attention_dropout", "dropout_rate"):
        assert getattr(again.config, rate, None) == getattr(before, rate, None)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        *((name, "all-linear") for name in KINDS),
        ("llama", ["lm_head"]),
        ("llama", ["embed_tokens", "q_proj"]),
    ],
)
def test_an_adapter_comes_back_from_its_files_alone(bases, name, targets, tmp_path, monkeypatch):
    monkeypatch.chdir(bases)
    policy = load_policy(name, lora={"r": 3, "alpha": 7, "target_modules": targets})
    stirred(policy.model)
    expected = logits(policy.model)
    save_model(policy, tmp_path / "saved")
    monkeypatch.chdir("/")
    close(logits(load_policy(tmp_path / "saved").model), expected)
    kind = peft.AutoPeftModelForSeq2SeqLM if name == "t5" else peft.AutoPeftModelForCausalLM
    close(logits(kind.from_pretrained(tmp_path / "saved")), expected)
    assert not (tmp_path / "saved/config.json").exists()


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_on_an_adapter_is_saved_whole(bases, name, tmp_path):
    first = load_policy(bases / name, lora={"r": 3, "target_modules": "all-linear"})
    stirred(first.model)
    save_model(first, tmp_path / "first")
    second = load_policy(
        tmp_path / "first", lora={"r": 2, "target_modules": ["q"] if name == "t5" else ["q_proj"]}
    )
    stirred(second.model)
    expected = logits(second.model)
    save_model(second, tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    close(logits(load_policy(tmp_path / "second").model), expected)
    again = plain(tmp_path / "second", KINDS[name])
    close(logits(again), expected)
    # Saving changed nothing of the policy, and forgot no dropout.
    close(logits(second.model), expected, 0)
    assert getattr(again.config, "attention_dropout", 0.3) == (0.0 if name == "tied" else 0.3)
    assert getattr(again.config, "dropout_rate", 0.1) == 0.1


@pytest.mark.parametrize("changed", ["merged", "trained", "resized", "from nowhere", "as it was"])
def test_an_adapter_on_a_loaded_model_is_saved_whole_where_the_model_is_not_what_its_name_leads_to(
    bases, changed, tmp_path
):
    model = plain(bases / "llama")
    words = load_tokenizer(str(bases / "llama"))
    if changed == "merged":
        model = adapted(model, "v_proj").merge_and_unload()
    if changed == "trained":
        with torch.no_grad():
            model.get_input_embeddings().weight[40] += 1
    if changed == "resized":
        words.add_tokens(["<think>"])
        model.resize_token_embeddings(len(words), mean_resizing=False)
    if changed == "from nowhere":
        model.config.name_or_path = ""
    for lora in (True, False):  # put on by cagsr, or by PEFT before
        given = model if lora else adapted(model, "q_proj")
        policy = load_policy(given, words, lora={"target_modules": ["q_proj"]} if lora else None)
        stirred(policy.model)
        expected = logits(policy.model)
        save_model(policy, tmp_path / f"saved-{lora}")
        close(logits(load_policy(tmp_path / f"saved-{lora}").model), expected)
        whole = (tmp_path / f"saved-{lora}/config.json").exists()
        assert whole == (changed != "as it was")
        if whole:
            close(logits(plain(tmp_path / f"saved-{lora}")), expected)
        model = policy.model.unload()  # type: ignore[operator] # PEFT's


def test_an_adapter_of_another_name_and_weights_trained_beside_one_are_saved_too(bases, tmp_path):
    named = peft.get_peft_model(
        plain(bases / "llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="mine"
    )
    beside = adapted(plain(bases / "llama"), "q_proj")
    for weight in beside.get_base_model().model.norm.parameters():
        weight.requires_grad_(True)
    model: Any
    for number, model in enumerate((stirred(named), beside)):
        policy = load_policy(model, load_tokenizer(str(bases / "llama")))
        if model is beside:
            with torch.no_grad():
                beside.get_base_model().model.norm.weight.add_(1)
        expected = logits(policy.model)
        save_model(policy, tmp_path / str(number))
        close(logits(load_policy(tmp_path / str(number)).model), expected)


def test_a_model_into_which_transformers_put_an_adapter_is_refused(bases, tmp_path):
    adapted(plain(bases / "llama"), "q_proj").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"transformers put an adapter into it.*peft\.PeftModel"):
        load_policy(plain(tmp_path), load_tokenizer(str(bases / "llama")))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_save_keeps_what_an_adapter_adds_below_the_precision_of_bfloat16(bases, dtype, tmp_path):
    first = load_policy(bases / "llama", lora={"target_modules": ["q_proj"]})
    save_model(first, tmp_path / "first")
    policy = load_policy(tmp_path / "first", dtype=dtype, lora={"r": 1, "target_modules": ["down_proj"]})
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_" in name:
                weight.fill_(0.003)
    save_model(policy, tmp_path / "second")
    key = "model.layers.1.mlp.down_proj.weight"
    before = load_file(bases / "llama/model.safetensors")[key].to(getattr(torch, dtype)).float()
    added = load_file(tmp_path / "second/model.safetensors")[key] - before
    torch.testing.assert_close(added, torch.full_like(added, 32 * 0.003**2), rtol=0.01, atol=1e-6)


def test_an_adapter_that_bfloat16_would_round_away_is_refused_and_a_larger_one_is_not(bases, tmp_path):
    policy = load_policy(bases / "llama", dtype="bfloat16", lora={"r": 1, "target_modules": ["down_proj"]})
    for size, fits in ((0.001, False), (0.1, True)):
        with torch.no_grad():
            for name, weight in policy.model.named_parameters():
                if "lora_" in name:
                    weight.fill_(size)
        expected = logits(policy.model)
        save_model(policy, tmp_path / "adapter")
        if fits:
            close(logits(load_policy(tmp_path / "adapter", dtype="bfloat16").model), expected, 0.02)
        else:
            with pytest.raises(InputError, match=r"bfloat16 rounding takes \d+% of an adapter away.*float32"):
                load_policy(tmp_path / "adapter", dtype="bfloat16")
            load_policy(tmp_path / "adapter")


# Adapters that others saved ---------------------------------------------------------------------------------------


@pytest.fixture
def foreign(bases, tmp_path):
    """``foreign("llama", "q_proj", tokens=3)``: an adapter as PEFT saves it, its directory, and its logits."""

    def make(name: str, *targets: str, tokens: int = 0, embeddings: bool | str = "auto", **settings):
        model, words = plain(bases / name), load_tokenizer(str(bases / name))
        if tokens:
            words.add_tokens([f"<{number}>" for number in range(tokens)])
            model.resize_token_embeddings(len(words))
        if settings.pop("last_tokens", False):
            settings["trainable_token_indices"] = [len(words) - 2, len(words) - 1]
        changed = adapted(model, *targets, **settings)
        changed.save_pretrained(tmp_path / "adapter", save_embedding_layers=embeddings)
        if tokens:
            words.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", logits(changed)

    return make


@pytest.mark.parametrize("name", ["llama", "tied"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"last_tokens": True},
    ],
    ids=["resized", "embeddings trained", "both trained", "tokens trained"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_with_added_tokens_brings_its_embeddings(foreign, name, settings):
    adapter, expected = foreign(name, "q_proj", tokens=3, **settings)
    policy = load_policy(adapter)
    assert len(policy.tokenizer) == policy.model.get_input_embeddings().num_embeddings
    close(logits(policy.model), expected)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.filterwarnings("ignore:Model (has|with):UserWarning", "ignore:Setting `save_emb:UserWarning")
def test_an_adapter_of_weights_that_two_modules_share_is_refused(foreign, bases, target):
    message = r"model.embed_tokens and lm_head of .* share their weights"
    adapter, _ = foreign("tied", target)
    with pytest.raises(UnsupportedModelError, match=message):
        load_policy(adapter)
    with pytest.raises(UnsupportedModelError, match=message):
        load_policy(bases / "tied", lora={"target_modules": [target]})
    with pytest.raises(UnsupportedModelError, match=message):
        load_policy(adapted(plain(bases / "tied"), target))
    adapter, expected = foreign("llama", target)
    close(logits(load_policy(adapter).model), expected)


@pytest.mark.filterwarnings("ignore:Setting `save_emb:UserWarning")
def test_added_tokens_without_all_their_embeddings_are_refused_with_the_sizes(foreign):
    adapter, _ = foreign("llama", "q_proj", tokens=3)
    weights = load_file(adapter / "adapter_model.safetensors")
    rows = len(weights.pop("base_model.model.lm_head.weight"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(
        InputError, match=rf"{{'input': {rows}}} rows, .*'input': {rows - 3}, 'output': {rows - 3}"
    ):
        load_policy(adapter)
    weights.pop("base_model.model.model.embed_tokens.weight")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"knows {rows} tokens and the model embeds {rows - 3}"):
        load_policy(adapter)


def test_sizes_that_do_not_fit_are_the_reason_that_is_given(foreign, models, tmp_path):
    adapter, _ = foreign("llama", "q_proj")
    weights = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in weights if "lora_A" in key)
    weights[key] = torch.zeros(2, 5)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"does not fit its base .*size mismatch for .*lora_A.*\[2, 5\]"):
        load_model(str(adapter))


@pytest.mark.parametrize("change", ["lacks", "has, but not its base, a place for"])
def test_an_adapter_that_is_put_on_in_parts_only_is_refused(foreign, change):
    adapter, _ = foreign("llama", "q_proj")
    weights = load_file(adapter / "adapter_model.safetensors")
    for key in [key for key in weights if "layers.1." in key]:
        value = weights[key]
        if change == "lacks":
            del weights[key]
        else:
            weights[key.replace("layers.1.", "layers.7.")] = value.clone()
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=f"{change} 2 weights .first: base_model.model.model.layers"):
        load_model(str(adapter))


def test_a_relative_base_is_looked_up_from_the_adapter_too_and_said_to_be_missing(
    foreign, bases, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    adapter, expected = foreign("llama", "q_proj")
    shutil.copytree(bases / "llama", tmp_path / "base")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for base in ("base", "../base"):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        close(logits(load_policy(adapter).model), expected)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    close(logits(load_policy(adapter).model), expected)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(
        InputError, match=r"the base of the LoRA adapter .*adapter does not load: .*'\.\./base'"
    ):
        load_policy(adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": None}, r"adapter_config\.json names no base"),
        ({"base_model_name_or_path": "."}, "names the adapter itself as its base"),
    ],
)
def test_an_adapter_that_names_no_other_model_is_refused(foreign, monkeypatch, settings, message):
    adapter, _ = foreign("llama", "q_proj")
    monkeypatch.chdir(adapter)
    known = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(known | settings))
    with pytest.raises(InputError, match=message):
        load_policy(adapter)


def test_an_adapter_that_writes_into_the_prompt_is_refused(bases, tmp_path):
    soft = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    peft.get_peft_model(plain(bases / "llama"), soft).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"PROMPT_TUNING\) writes virtual tokens"):
        load_policy(tmp_path)


def test_on_the_hub_an_adapter_names_the_commit_of_its_base_and_one_that_has_moved_is_refused(
    bases, tmp_path, monkeypatch
):
    hub = HubCache(tmp_path / "hub", monkeypatch)
    hub.add("some/base", bases / "llama")
    policy = load_policy("some/base", lora={"target_modules": ["q_proj"]})
    stirred(policy.model)
    expected = logits(policy.model)
    save_model(policy, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("some/base", COMMITS[0])
    hub.add("some/adapter", tmp_path / "adapter", COMMITS[1])
    hub.add("some/base", bases / "tied", COMMITS[1])  # its main branch goes on
    for name in (tmp_path / "adapter", "some/adapter"):
        close(logits(load_policy(name).model), expected)
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings | {"revision": None}))
    with pytest.raises(
        InputError, match=rf"weights {COMMITS[0][:12]}\.\.\., and these are {COMMITS[1][:12]}\.\.\."
    ):
        load_policy(tmp_path / "adapter")


@pytest.mark.parametrize("given", ["a config", "a PEFT model"])
def test_a_misspelt_module_is_named_with_its_neighbour(bases, given):
    names = ["q_proj", "v_porj"]
    model = bases / "llama" if given == "a config" else adapted(plain(bases / "llama"), *names)
    with pytest.raises(InputError, match=r"no module 'v_porj'\. Did you mean v_proj\?"):
        load_policy(model, lora={"target_modules": names} if given == "a config" else None)


def test_an_adapter_on_a_model_that_was_told_otherwise_is_saved_whole_and_settings_of_sampling_are_no_matter(
    bases, tmp_path
):
    def saved(name, **told):
        model = KINDS["llama"].from_pretrained(bases / "llama", **told)
        model.generation_config.update(do_sample=True, temperature=0.7)
        model.config.pad_token_id = 1
        if name == "ends":
            model.generation_config.eos_token_id = [1, 30]
        policy = load_policy(model, load_tokenizer(str(bases / "llama")), lora={"target_modules": ["q_proj"]})
        stirred(policy.model)
        save_model(policy, tmp_path / name)
        again = load_policy(tmp_path / name)
        close(logits(again.model), logits(policy.model))
        assert again.eos_ids == policy.eos_ids
        return "whole" if (tmp_path / name / "config.json").exists() else "adapter"

    assert saved("other", rms_norm_eps=0.5) == "whole"
    assert saved("ends") == "whole"
    assert saved("same") == "adapter"


def test_embeddings_that_were_resized_are_saved_where_the_config_ties_nothing(bases, tmp_path):
    words = load_tokenizer(str(bases / "t5"))
    model = new_model("bart", words, layers=1, hidden=20, heads=5, context=64)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "bart")
    words.save_pretrained(tmp_path / "bart")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "bart", tie_word_embeddings=False)
    words.add_tokens(["<think>"])
    model.resize_token_embeddings(len(words), mean_resizing=False)
    policy = load_policy(model, words)
    save_model(policy, tmp_path / "saved")
    close(logits(load_policy(tmp_path / "saved").model), logits(policy.model), 0)
    close(logits(plain(tmp_path / "saved", AutoModelForSeq2SeqLM)), logits(policy.model))
