"""No code from artifacts: hostile models, adapters, data files and configs, and a file that appears if one runs.

Every attack is real: unpickled, imported or constructed, its payload creates a canary file. Somebody at the
terminal answers "y" to every question. What is left must be an InputError, or, where the rest of the model is
sound, a model that loaded without the payload.
"""

import builtins
import json
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from transformers.utils import logging

from cagsr.config import Config
from cagsr.data.preferences import read_pairs
from cagsr.data.readers import read
from cagsr.errors import InputError
from cagsr.metrics.local_model import LocalModel
from cagsr.metrics.relevance import Relevance
from cagsr.models.from_scratch import new_model
from cagsr.models.load import load_model, load_tokenizer, make_policy
from cagsr.rewards.presets import load_preset
from cagsr.rewards.reward_model import RewardModel
from cagsr.tasks import TASKS, tokenizer

TITLE = "no code from artifacts"
PROMISE = 11
SHARDS = False

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
AUTO = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


class Payload:
    """Creates the canary when it is unpickled."""

    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (self._code,)


class Attack(NamedTuple):
    """What is attacked, with what; ``refused`` where nothing sound is left that could be used."""

    name: str
    run: Callable[[Path, str], object]
    refused: bool = True


# Models: what is planted in a directory that is sound otherwise ---------------------------------------------------


def _pickled(file: str) -> Callable[[Path, str], None]:
    def plant(model: Path, code: str) -> None:
        (model / WEIGHTS).unlink()
        (model / file).write_bytes(pickle.dumps(Payload(code)))

    return plant


def _torch_pickle(model: Path, code: str) -> None:
    (model / WEIGHTS).unlink()
    torch.save({"lm_head.weight": Payload(code)}, model / "pytorch_model.bin")


def _shards(index: str) -> Callable[[Path, str], None]:
    def plant(model: Path, code: str) -> None:
        (model / WEIGHTS).unlink()
        (model / "shard.bin").write_bytes(pickle.dumps(Payload(code)))
        (model / index).write_text(
            json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "shard.bin"}})
        )

    return plant


def _named_index(model: Path, code: str) -> None:
    _shards("other.safetensors.index.json")(model, code)
    _change(model / CONFIG, transformers_weights="other.safetensors.index.json")


def _named_pickle(model: Path, code: str) -> None:
    _pickled("adapter_model.bin")(model, code)
    _change(model / CONFIG, transformers_weights="adapter_model.bin")


def _outside(model: Path, code: str) -> None:
    (model.parent / "shard.bin").write_bytes(pickle.dumps(Payload(code)))
    _shards(INDEX)(model, code)
    _change(model / INDEX, weight_map={"model.norm.weight": "../shard.bin"})


def _unknown_type(model: Path, code: str) -> None:
    (model / "modeling_x.py").write_text(code)
    _change(model / CONFIG, model_type="unheard_of", auto_map=dict.fromkeys(AUTO, "modeling_x.Thing"))


def _known_type(model: Path, code: str) -> None:
    (model / "modeling_x.py").write_text(code)
    _change(model / CONFIG, auto_map=dict.fromkeys(AUTO, "modeling_x.Thing"))


def _tokenizer_code(model: Path, code: str) -> None:
    (model / "words_x.py").write_text(code)
    auto = {"AutoTokenizer": ["words_x.Words", "words_x.Words"]}
    _change(model / "tokenizer_config.json", tokenizer_class="Words", auto_map=auto)


def _kernel(key: str) -> Callable[[Path, str], None]:
    def plant(model: Path, code: str) -> None:
        _change(model / CONFIG, **{key: "somebody/kernel"})

    return plant


def _template(model: Path, code: str) -> None:
    (model / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.__builtins__.exec(code) }}")


def _beside(model: Path, code: str) -> None:
    for file in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "random_states_0.pkl"):
        (model / file).write_bytes(pickle.dumps(Payload(code)))
    for file in ("setup.py", "__init__.py", "conftest.py", "tokenizer.py", "handler.py"):
        (model / file).write_text(code)


PLANTED: dict[str, tuple[Callable[[Path, str], None], bool]] = {
    "only pytorch_model.bin, a pickle": (_pickled("pytorch_model.bin"), True),
    "only pytorch_model.bin, a torch file": (_torch_pickle, True),
    "a pickle called model.safetensors": (_pickled(WEIGHTS), True),
    "a pickle called tf_model.h5": (_pickled("tf_model.h5"), True),
    "an index of pickles": (_shards("pytorch_model.bin.index.json"), True),
    "an index of safetensors that leads to a pickle": (_shards(INDEX), True),
    "an index that leads out of the directory": (_outside, True),
    "a config that names such an index": (_named_index, True),
    "a config that names a pickle": (_named_pickle, True),
    "a model type in code beside it": (_unknown_type, True),
    "code beside a known model type": (_known_type, False),
    "a tokenizer in code beside it": (_tokenizer_code, True),
    "a kernel as attn_implementation": (_kernel("attn_implementation"), False),
    "a kernel as _attn_implementation": (_kernel("_attn_implementation"), False),
    "a kernel as experts_implementation": (_kernel("experts_implementation"), True),
    "a chat template that leaves its sandbox": (_template, False),
    "pickles and scripts beside sound files": (_beside, False),
}


def _policy(name: str) -> Any:
    model, _ = load_model(name)
    return make_policy(model, load_tokenizer(name)).model


def _judge(name: str) -> Any:
    judge = LocalModel(name)
    judge([{"role": "user", "content": "Which?"}], 2)
    return judge._model


def _relevance(name: str) -> Any:
    relevance = Relevance(name)
    relevance(["one"], ["two"])
    return relevance._model


LOADERS: dict[str, Callable[[str], Any]] = {
    "policy": _policy,
    "judge": _judge,
    "embedding model": _relevance,
    "reward model": lambda name: RewardModel.load(name).model,
}


def _on_model(
    plant: Callable[[Path, str], None], load: Callable[[str], Any]
) -> Callable[[Path, str], object]:
    def run(place: Path, code: str) -> None:
        model = _sound_model(place / "model")
        plant(model, code)
        loaded = load(str(model))
        assert loaded.config._attn_implementation in ("cagsr", "sdpa", "eager"), "attention chosen by a file"

    return run


def _sound_model(directory: Path) -> Path:
    words = tokenizer(TASKS["slots"], "causal")
    new_model("llama", words, layers=1, hidden=8, heads=2, context=64).save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Adapters ---------------------------------------------------------------------------------------------------------


def _on_adapter(weights: str, **settings: Any) -> Callable[[Path, str], object]:
    """A LoRA adapter whose weights are a pickle, or whose config has keys that name code."""

    def run(place: Path, code: str) -> object:
        (place / "hostile_x.py").write_text(code)
        base, adapter = _sound_model(place / "base"), place / "adapter"
        adapter.mkdir()
        given = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
        given |= {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
        (adapter / "adapter_config.json").write_text(json.dumps(given | settings))
        (adapter / weights).write_bytes(pickle.dumps(Payload(code)))
        with patch.object(sys, "path", [str(place), *sys.path]):
            return load_model(str(adapter))

    return run


ADAPTERS = {
    "adapter_model.bin": _on_adapter("adapter_model.bin"),
    "a pickle called adapter_model.safetensors": _on_adapter("adapter_model.safetensors"),
    "megatron_core": _on_adapter(
        "adapter_model.safetensors", megatron_core="hostile_x", megatron_config={"a": 1}
    ),
    "auto_mapping": _on_adapter(
        "adapter_model.safetensors",
        auto_mapping={"parent_library": "hostile_x", "base_model_class": "Thing"},
        task_type=None,
    ),
    "a type unheard of": _on_adapter("adapter_model.safetensors", peft_type="hostile_x"),
}


# Files of data and of settings ------------------------------------------------------------------------------------


def _on_file(
    name: str, content: Callable[[str], bytes], reader: Callable[[str], object]
) -> Callable[[Path, str], object]:
    def run(place: Path, code: str) -> object:
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(code))
        return reader(str(path))

    return run


def _unusable(source: str) -> None:
    """Reads a source, and refuses what it holds as `cagsr train` does: by the problem of its first row."""
    rows = read(source)
    if any(row.problem for row in rows):
        raise InputError(f"{rows[0].place}: {rows[0].problem}")


def _pairs(path: str) -> object:
    return read_pairs(path, tokenizer(TASKS["slots"], "causal"))


def _arrow_extension(code: str) -> bytes:
    """Parquet whose schema carries a pickle, which old pyarrow opened."""
    import pyarrow
    import pyarrow.parquet

    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(code)),
    }
    field = pyarrow.field("hidden", pyarrow.string(), metadata=metadata)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table([["text"]], schema=pyarrow.schema([field])), sink)
    return sink.getvalue().to_pybytes()


def _pickle(code: str) -> bytes:
    return pickle.dumps(Payload(code))


def _on_directory(file: str, content: Callable[[str], bytes]) -> Callable[[Path, str], object]:
    return _on_file(f"data/{file}", content, lambda path: _unusable(str(Path(path).parent)))


DATA_NAMES = ("rows.pkl", "rows.pickle", "rows.pt", "rows.npy", "rows.joblib", "rows.arrow")
DATA_NAMES += ("rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.gz")
DATA = {
    **{f"a pickle called {name}": _on_file(name, _pickle, _unusable) for name in DATA_NAMES},
    **{f"pairs in {name}": _on_file(name, _pickle, _pairs) for name in ("pairs.pkl", "pairs.jsonl")},
    "a loading script": _on_file("data.py", str.encode, _unusable),
    "a directory with a loading script": _on_directory("data.py", str.encode),
    "a directory with a pickle for state.json": _on_directory("state.json", _pickle),
    "a directory with a pickle": _on_directory("rows.pkl", _pickle),
}

TAGS = {
    "object/apply": "!!python/object/apply:builtins.exec [{code}]",
    "object/apply of os.system": "!!python/object/apply:os.system ['touch {canary}']",
    "object/new": "!!python/object/new:builtins.exec [{code}]",
    "object": "!!python/object:safety.Payload {{_code: {code}}}",
    "name": "!!python/name:builtins.exec",
    "module": "!!python/module:antigravity",
    "a tag of its own": "!payload {code}",
    "tag spelt out": "!<tag:yaml.org,2002:python/object/apply:builtins.exec> [{code}]",
}


def _yaml(template: str, tag: str) -> Callable[[str], bytes]:
    def content(code: str) -> bytes:
        canary = code.split("'")[1]
        value = TAGS[tag].format(code=json.dumps(code), canary=canary)
        return template.format(value=value).encode()

    return content


def _on_override(tag: str) -> Callable[[Path, str], object]:
    return lambda place, code: Config.load(None, ["train.steps=" + _yaml("{value}", tag)(code).decode()])


YAML = {}
for _tag in TAGS:
    YAML[f"{_tag} as a value"] = _on_file("c.yaml", _yaml("train:\n  steps: {value}\n", _tag), Config.load)
    YAML[f"{_tag} as a text"] = _on_file("c.yaml", _yaml("run:\n  directory: {value}\n", _tag), Config.load)
    YAML[f"{_tag} as a section"] = _on_file("c.yaml", _yaml("train: {value}\n", _tag), Config.load)
    YAML[f"{_tag} as the document"] = _on_file("c.yaml", _yaml("{value}\n", _tag), Config.load)
    YAML[f"{_tag} as a key"] = _on_file("c.yaml", _yaml("? {value}\n: 1\n", _tag), Config.load)
    YAML[f"{_tag} in a preset"] = _on_file("p.yaml", _yaml("terms: {value}\n", _tag), load_preset)
    YAML[f"{_tag} on the command line"] = _on_override(_tag)
YAML["a key twice"] = _on_file("c.yaml", lambda _: b"train:\n  steps: 3\n  steps: 5\n", Config.load)
YAML["a section twice"] = _on_file("c.yaml", lambda _: b"train: {}\nrun: {}\ntrain: {}\n", Config.load)
YAML["aliases that multiply"] = _on_file("c.yaml", lambda _: b"a: &a [x]\nb: [*a, *a]\n", Config.load)

ATTACKS = (
    *(
        Attack(f"{loader}: {name}", _on_model(plant, LOADERS[loader]), refused)
        for name, (plant, refused) in PLANTED.items()
        for loader in LOADERS
    ),
    *(Attack(f"adapter: {name}", run) for name, run in ADAPTERS.items()),
    *(Attack(f"data: {name}", run) for name, run in DATA.items()),
    Attack("data: Parquet with a pickled type", _on_file("rows.parquet", _arrow_extension, _unusable), False),
    *(Attack(f"YAML: {name}", run) for name, run in YAML.items()),
)
COUNT = len(ATTACKS)


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The attacks, out of ``count`` drawn over all kinds, whose code ran or that got no plain refusal."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    failures = []
    number = min(count, COUNT)
    first = random.randrange(COUNT)
    for item in range(number):
        attack = ATTACKS[(first + item * COUNT // number) % COUNT]
        problem = outcome(attack)
        failures += [f"{attack.name}: {problem}"] if problem else []
        advance()
    return failures


def outcome(attack: Attack) -> str:
    """What is wrong with the answer to one attack; empty when nothing ran and the answer was plain."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        canary = place / "canary"
        code = f"open('{canary}', 'w').close()\n"
        with patch.object(builtins, "input", lambda *_: "y"):
            problem = _answer(attack, place, code)
        shutil.rmtree(place / "model", ignore_errors=True)
        return f"its code ran ({problem or 'and it was refused later'})" if canary.exists() else problem


def _answer(attack: Attack, place: Path, code: str) -> str:
    try:
        attack.run(place, code)
    except InputError as error:
        return "" if str(error).strip() else "refused without a word"
    except Exception as error:
        return f"no plain message but {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return "not refused" if attack.refused else ""
