"""Conversion of a GGUF file to a directory of safetensors, config and tokenizer, held to what the file states."""

import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.atomic_write import storing
from cagsr.models.gguf_tokenizer import tokenizer_of

__all__ = ["EXACT", "convert"]

EXACT = ("F64", "F32", "F16", "BF16")
"""Types of weights that are numbers by themselves; all others are rounded in blocks."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
STATED = {
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.layer_norm_epsilon": EPSILONS,
    "attention.sliding_window": ("sliding_window",),
}
"""Keys of a file, and the field of a config that has it: the first that there is. transformers passes some over."""

TIED_ALWAYS = ("falcon", "bloom")
"""Architectures whose head is their embedding although a file repeats it."""

FREQUENCIES = "rope_freqs.weight"
"""The tensor that holds what Llama 3 divides the frequencies of its rotary embedding by, and no weights."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all models of Llama 3 have in common of that: the file does not say it, and its divisors are held to it."""


def convert(path: Path, directory: Path, beside: Path | None, started: Callable[[], None]) -> str:
    """Write the model in the GGUF file ``path`` to ``directory``; returns the type of most of its weights ("Q4_1").

    ``beside`` is the tokenizer.json that is used in place of the file's own vocabulary. ``started`` is called when the
    file is known and its weights, the long part, come next.

    Raises InputError where the package gguf is missing, UnsupportedModelError for a model that transformers would read
    as another one than the file describes, StorageError, and errors of any class for a broken file.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError("as model.name needs the package gguf: pip install gguf") from error
    with tempfile.TemporaryDirectory() as alone:
        # Under this name nothing that lies beside the file is taken for a part of the model.
        link = Path(alone, "model.gguf")
        link.symlink_to(path)
        file = GGUFReader(link)
        if (parts := _stated(file, "split.count") or 1) > 1:
            raise UnsupportedModelError(
                f"is one of {parts} parts; merge them (llama-gguf-split --merge) and name the whole"
            )
        tokenizer = tokenizer_of(link, beside)
        config = _config_of(file, link)
        started()
        with redirect_stderr(io.StringIO()):  # a progress bar that no setting switches off
            model = _model_of(file, link, config)
    _set_ends(file, model)
    tokenizer.model_max_length = _stated(file, "context_length") or tokenizer.model_max_length
    with storing(directory):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    sizes = Counter[str]()
    for tensor in file.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return sizes.most_common(1)[0][0]


def _stated(file: Any, key: str) -> Any:
    """What the file says of ``key``, of its architecture or of all; None where it says nothing.

    Numbers with a fraction are of 32 bits there: 1e-05 is what was meant by 9.999999747378752e-06.
    """
    architecture = file.get_field("general.architecture").contents()
    field = file.get_field(f"{architecture}.{key}") or file.get_field(key)
    value = None if field is None else field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _config_of(file: Any, link: Path) -> PretrainedConfig:
    """The config that transformers makes of the file, with what the file states put right."""
    config = AutoConfig.from_pretrained(link.parent, gguf_file=link.name)
    names = {tensor.name for tensor in file.tensors}
    config.tie_word_embeddings = (
        "output.weight" not in names or _stated(file, "general.architecture") in TIED_ALWAYS
    )
    for key, fields in STATED.items():
        value = _stated(file, key)
        if isinstance(value, int | float):
            field = next((field for field in fields if hasattr(config, field)), None)
            if field is None:
                raise _no_place(config, key, value)
            setattr(config, field, value)
    if hasattr(config, "n_positions"):
        config.n_positions = _stated(file, "context_length") or config.n_positions
    if config.model_type in ("t5", "umt5"):  # transformers would combine the gate with another activation
        gated = any(".ffn_gate." in name for name in names)
        config.is_gated_act, config.dense_act_fn = gated, "gelu_new" if gated else "relu"
        config.feed_forward_proj = "gated-gelu" if gated else "relu"
    _set_rotary(file, config)
    vars(config).pop("_model_name_or_path", None)
    return config


def _set_rotary(file: Any, config: PretrainedConfig) -> None:
    """Set base, width and scaling of a config's rotary position embedding to what the file states."""
    given = {key: _stated(file, f"rope.{key}") for key in ("freq_base", "freq_base_swa", "dimension_count")}
    rope: Any = getattr(config, "rope_parameters", None)
    if not rope:
        if given["freq_base"] is not None:
            raise _no_place(config, "rope.freq_base", given["freq_base"])
        return
    whole = rope.get("full_attention", rope)  # some have settings for each kind of layer
    if given["freq_base"] is not None:
        whole["rope_theta"] = given["freq_base"]
    if given["freq_base_swa"] is not None and "sliding_attention" in rope:
        rope["sliding_attention"]["rope_theta"] = given["freq_base_swa"]
    if given["dimension_count"] is not None and whole is rope and not hasattr(config, "rotary_dim"):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if int(head * rope.get("partial_rotary_factor", 1.0)) != given["dimension_count"]:
            if "partial_rotary_factor" not in rope:
                raise _no_place(config, "rope.dimension_count", given["dimension_count"])
            rope["partial_rotary_factor"] = given["dimension_count"] / head
    kind, factor = _stated(file, "rope.scaling.type"), _stated(file, "rope.scaling.factor")
    divisors = next((tensor.data for tensor in file.tensors if tensor.name == FREQUENCIES), None)
    if divisors is not None:
        _set_llama3(config, whole, torch.tensor(divisors).float())
    elif kind == "linear" and factor:
        whole |= {"rope_type": "linear", "factor": factor}
    elif kind not in (None, "none", "linear") and whole.get("rope_type") != kind:
        raise _no_place(config, "rope.scaling.type", kind)


def _set_llama3(config: PretrainedConfig, rope: dict[str, Any], divisors: torch.Tensor) -> None:
    """Set the scaling of Llama 3 that gives these divisors [D/2] of the frequencies; refuse any that it does not."""
    if bool((divisors == 1).all()):
        return
    exponents = torch.arange(len(divisors), dtype=torch.float32) / len(divisors)
    plain = rope["rope_theta"] ** -exponents
    rope |= {"rope_type": "llama3", "factor": round(divisors.max().item(), 3)} | LLAMA3
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if scaled.shape != plain.shape or not torch.allclose(plain / scaled, divisors, rtol=1e-3):
        raise _no_place(config, FREQUENCIES, f"{divisors.min():.3g} to {divisors.max():.3g}")


def _model_of(file: Any, link: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model with all weights of the file and no others, in float32."""
    loader: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    loaded, found = loader.from_pretrained(
        link.parent,
        gguf_file=link.name,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        # What does not fit is named below; by itself transformers fills it with random numbers.
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if wrong := [f"{keys} {sorted(map(str, found[keys]))[0]}" for keys in found if found[keys]]:
        raise UnsupportedModelError(
            f"does not have the weights of the {config.model_type} that transformers makes of it: "
            f"{wrong[0]}. Save the original as safetensors and name that."
        )
    with torch.device("meta"):  # what was loaded counts as quantised, and cannot be saved
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    _check_read(file, model)
    return model


def _check_read(file: Any, model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where the file has more numbers than the model: transformers drops what it does not
    know, a bias or a layer's second half, without a word.
    """
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    tied = ["output.weight"] if model.config.tie_word_embeddings else []
    read = 0
    for tensor in file.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        beyond = (
            layer is not None and int(layer[1]) >= layers
        )  # layers that only predict several tokens at once
        read += 0 if beyond or tensor.name in (FREQUENCIES, *tied) else int(tensor.n_elements)
    held = sum({weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}.values())
    if read > held:
        raise UnsupportedModelError(
            f"has {read - held} numbers more than the {model.config.model_type} that transformers makes of it, which "
            "would be left out. Save the original as safetensors and name that."
        )


def _set_ends(file: Any, model: PreTrainedModel) -> None:
    """Let every token that the file names as an end, of a text, a turn or a message, end a response."""
    generation: Any = model.generation_config
    known = generation.eos_token_id
    ends = known if isinstance(known, list) else [known]
    ends = [*ends, *(_stated(file, f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom"))]
    ends = [token for token in dict.fromkeys(ends) if token is not None]
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _no_place(config: PretrainedConfig, key: str, value: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"states {key} {value}, and the {config.model_type} that transformers makes of it has no place for that: it "
        "would be another model. Save the original as safetensors and name that."
    )
