"""What is saved loads again to the same logits: random models, trained in stages, saved, moved, loaded.

A model is made (Llama, T5, BART; tied or not; with dropout; with tokens added) and goes through stages: its weights
are changed, an adapter of random modules is put on, by its name or as a program holds it, with or without a critic, in
float32 or bfloat16. What the last stage saved is then loaded by `load_policy` from another working directory, and by
plain transformers or PEFT; the base may lie beside it, have moved with it, be another one now or be gone. It says the
same, with the same dropout and ends, or is refused by name where it cannot.

An item is its seed: ``saved_models.problems(seed)`` runs it again.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.adapters import ADAPTER
from cagsr.models.from_scratch import new_tokenizer
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy

TITLE = "what is saved loads again to the same logits"
PROMISE = 17
COUNT = 120

TEXTS = ["city lyon comes to the party on monday", "hello world, tea and porto for the neighbours"] * 5
SHARED = {"pad_token_id": 0, "eos_token_id": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 24,
        "intermediate_size": 29,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 67,
        "bos_token_id": None,
        "attention_dropout": 0.3,
    },
    "t5": {
        "d_model": 26,
        "d_kv": 7,
        "d_ff": 31,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": 3,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
    },
    "bart": {
        "d_model": 20,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 5,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 23,
        "decoder_ffn_dim": 29,
        "max_position_embeddings": 67,
        "bos_token_id": 0,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
        "dropout": 0.1,
        "activation_dropout": 0.2,
    },
}
# What a program may change of a model that it has loaded, and no weight shows.
TOLD: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 0.5},
    "t5": {"layer_norm_epsilon": 0.5},
    "bart": {"scale_embedding": True},
}
RATES = ("attention_dropout", "dropout_rate", "dropout", "activation_dropout")
TARGETS: dict[str, tuple[list[str], ...]] = {
    "llama": (["q_proj"], ["v_proj", "down_proj"], ["o_proj", "up_proj"]),
    "t5": (["q"], ["v", "wo"], ["o", "wi"]),
    "bart": (["q_proj"], ["v_proj", "fc2"], ["out_proj", "fc1"]),
}
FATES = ("stays", "stays", "stays", "moves along", "is another one", "is gone")
"""What becomes of the base of an adapter."""

ROUNDED = {"float32": 2e-4, "bfloat16": 0.15}
"""Share of the largest logit by which merging and another attention kernel may round."""

ROUNDING = ("rounding takes", "cannot be read exactly", "says something else when its adapter is merged")
"""What a refusal says for which bfloat16 is reason enough."""

IDS = torch.tensor([[3, 5, 7, 11, 13, 17, 19, 23]])


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The models, out of ``count``, that say something else once loaded, each with its seed."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    failures = []
    for _ in range(count):
        seed = random.getrandbits(48)
        found, how = _judged(seed)
        failures += [f"seed {seed}: {problem}" for problem in found]
        advance(**{how: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    return f"{sums['adapter']} adapters, {sums['whole']} whole models, {sums['refused']} refused by name"


def problems(seed: int) -> list[str]:
    """What is wrong with what the item of this seed saved."""
    return _judged(seed)[0]


@dataclass
class Plan:
    """One item: what the model is and what becomes of it; ``said`` grows by each stage."""

    random: Random
    kind: str
    dtype: str
    said: str
    rates: dict[str, float]


def _judged(seed: int) -> tuple[list[str], str]:
    started = os.getcwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            plan, name = _made(Random(seed), Path(place))
            found, how = _followed(plan, Path(place), name)
        finally:
            os.chdir(started)
    return [f"{plan.said}: {problem}" for problem in found], how


def _made(random: Random, place: Path) -> tuple[Plan, str]:
    """The plan, and the name of the base, absolute or relative."""
    torch.manual_seed(random.getrandbits(31))
    kind, dtype, tied = (
        random.choice([*SHAPES]),
        random.choice((*["float32"] * 3, "bfloat16")),
        random.random() < 0.5,
    )
    words = new_tokenizer(TEXTS, kind, 300)
    config = AutoConfig.for_model(
        kind, **SHARED | SHAPES[kind] | {"vocab_size": len(words), "tie_word_embeddings": tied}
    )
    model = (AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM).from_config(config)
    _stir(model, random)
    if random.random() < 0.3:
        model.generation_config.eos_token_id = [1, 20]
    model.save_pretrained(place / "base")
    words.save_pretrained(place / "base")
    rates = {rate: getattr(config, rate) for rate in RATES if hasattr(config, rate)}
    said = f"{kind}, {'tied' if tied else 'untied'}, {dtype}"
    return Plan(random, kind, dtype, said, rates), random.choice(("base", str(place / "base")))


def _followed(plan: Plan, place: Path, name: str) -> tuple[list[str], str]:
    """Go through the stages, save after each, and judge what the last one saved."""
    policy = None
    try:
        for stage in range(plan.random.randint(1, 3)):
            policy = _stage(plan, name)
            name = plan.random.choice((f"stage-{stage}", str(place / f"stage-{stage}")))
            save_model(policy, Path(name))
    except (InputError, UnsupportedModelError) as error:
        return _unneeded(plan, str(error)), "refused"
    assert policy is not None, "there is a stage at least"
    expected, how = _logits(policy.model), "adapter" if Path(name, ADAPTER).exists() else "whole"
    fate = plan.random.choice(FATES)
    plan.said += f"; saved as {how}, the base {fate}"
    base = None if policy.base is None else Path(policy.base.name)
    place = _moved(fate, place, base if how == "adapter" else None)
    os.chdir("/")
    saved = place / Path(name).name
    wrong = _loaded(plan, policy, saved, expected, fate if how == "adapter" else "stays")
    if fate == "stays" or how == "whole":
        wrong += _plainly(plan, saved, expected, how)
    return wrong, how


def _stage(plan: Plan, name: str) -> Policy:
    """The model of this name, loaded one way or another and changed."""
    random = plan.random
    way = random.choice(("by name", "by name", "loaded", "told", "with tokens", "by PEFT"))
    if Path(name, ADAPTER).exists():
        way = "by name"  # plain transformers loads whole models
    targets = random.choice((*TARGETS[plan.kind], "all-linear"))
    lora = (
        {"r": random.choice((2, 3)), "alpha": 7, "target_modules": targets} if random.random() < 0.6 else None
    )
    settings: dict[str, Any] = {"critic": random.random() < 0.3}
    if way == "by name":
        policy = load_policy(name, dtype=plan.dtype, lora=lora, **settings)
    else:
        loader = AutoModelForCausalLM if plan.kind == "llama" else AutoModelForSeq2SeqLM
        told = TOLD[plan.kind] if way == "told" else {}
        model: Any = loader.from_pretrained(name, dtype=getattr(torch, plan.dtype), **told)
        words = AutoTokenizer.from_pretrained(name)
        if way == "with tokens":
            words.add_tokens([f"<{len(words)}>"])
            model.resize_token_embeddings(len(words), mean_resizing=False)
        if way == "told" and random.random() < 0.5:
            model.generation_config.eos_token_id = [1, 30]
        if way == "by PEFT":
            kind = "CAUSAL_LM" if plan.kind == "llama" else "SEQ_2_SEQ_LM"
            chosen = random.choice(TARGETS[plan.kind])
            model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=chosen, task_type=kind))
            lora, targets = None, chosen
        policy = load_policy(model, words, lora=lora, **settings)
    adapts = lora is not None or way == "by PEFT"
    plan.said += f"; {way}, {f'LoRA on {targets}' if adapts else 'whole'}"
    _stir(policy.model, random)
    return policy.eval()


def _stir(model: Any, random: Random) -> None:
    """Change what is trained, so much that nothing of it can be lost unseen."""
    generator = torch.Generator().manual_seed(random.getrandbits(31))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and weight.dim() > 1:
                scale = 0.15 if "lora_" in name or weight.dtype == torch.bfloat16 else 0.3
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


def _unneeded(plan: Plan, message: str) -> list[str]:
    """What is wrong with a refusal before anything was saved: it needs a reason of the model's own."""
    shared = "share their weights" in message and ("tied" in plan.said or plan.kind == "t5")
    rounded = plan.dtype == "bfloat16" and any(words in message for words in ROUNDING)
    return [] if shared or rounded else [f"refused without need: {message[:300]}"]


def _moved(fate: str, place: Path, base: Path | None) -> Path:
    """Let the fate of the base, where there is one, happen; the directory where everything lies then."""
    if fate == "moves along":
        elsewhere = place / "elsewhere"
        elsewhere.mkdir()
        for path in [path for path in place.iterdir() if path != elsewhere]:
            shutil.move(path, elsewhere / path.name)
        return elsewhere
    if fate == "is another one" and base is not None:
        weights = load_file(base / "model.safetensors")
        next(weight for weight in weights.values() if weight.dim() > 1)[0] += 1
        save_file(weights, base / "model.safetensors", {"format": "pt"})
    if fate == "is gone" and base is not None:
        shutil.rmtree(base)
    return place


def _loaded(plan: Plan, policy: Policy, saved: Path, expected: Tensor, fate: str) -> list[str]:
    """What is wrong with what `load_policy` makes of the files; ``fate`` is that of what they stand on."""
    lost = fate in ("is another one", "is gone") and (saved / ADAPTER).exists()
    try:
        again = load_policy(saved, dtype=plan.dtype)
    except (InputError, UnsupportedModelError) as error:
        if lost:
            return [] if "base" in str(error) else [f"refused with another reason: {str(error)[:300]}"]
        return _unneeded(plan, str(error))
    if lost:
        return ["loaded onto another base"]
    wrong = _apart(_logits(again.model), expected, plan)
    if again.eos_ids != policy.eos_ids:
        wrong.append(f"responses end with {again.eos_ids}, and did with {policy.eos_ids}")
    text = "city <300><301> lyon"
    if again.tokenizer(text)["input_ids"] != policy.tokenizer(text)["input_ids"]:
        wrong.append("the tokenizer is another one")
    return wrong


def _plainly(plan: Plan, saved: Path, expected: Tensor, how: str) -> list[str]:
    """What is wrong with what plain transformers, or PEFT, makes of the files."""
    causal, dtype = plan.kind == "llama", getattr(torch, plan.dtype)
    if how == "adapter":
        loader: Any = peft.AutoPeftModelForCausalLM if causal else peft.AutoPeftModelForSeq2SeqLM
    else:
        loader = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
    model = loader.from_pretrained(saved, dtype=dtype, attn_implementation="eager")
    wrong = [f"plainly loaded: {problem}" for problem in _apart(_logits(model), expected, plan)]
    rates = {rate: getattr(model.config, rate) for rate in plan.rates}
    return wrong + ([f"its dropout is {rates}, and was {plan.rates}"] if rates != plan.rates else [])


def _logits(model: Any) -> Tensor:
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **more).logits.float()


def _apart(found: Tensor, expected: Tensor, plan: Plan) -> list[str]:
    if found.shape != expected.shape:
        return [f"{found.shape[-1]} tokens, and {expected.shape[-1]} before"]
    share = float((found - expected).abs().max() / expected.abs().max())
    return [] if share <= ROUNDED[plan.dtype] else [f"logits differ by {share:.3g} of the largest"]
