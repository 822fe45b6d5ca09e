"""Cache of learnt heads in the user's cache: a second run of a base on the same prompts need not find them again.

A file holds all that its heads are a function of, beside the heads and a digest of both. What is damaged, or was found
of anything else, is not read; the heads are then found anew, and the file written over.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cagsr.config import Config
from cagsr.errors import StorageError
from cagsr.evaluation.learnt_heads import prompts_for_heads
from cagsr.io.atomic_write import write_atomically
from cagsr.io.provenance import code, versions
from cagsr.io.user_cache import user_cache
from cagsr.models.policy import Policy
from cagsr.rewards.heads_found import Heads
from cagsr.rewards.salience import Salience
from cagsr.runs.directory import fingerprint
from cagsr.types import Prompt

__all__ = ["HeadsCache"]

DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""A commit of the hub, or a SHA-256: what else stands for a model's weights may come to mean others."""


class HeadsCache:
    """The place in the cache of the heads of one base, on these prompts with these pieces, sampling and seed.

    ``model`` identifies the base, as of `runs.identity.of_model`; without a digest of its weights nothing is cached.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        policy: Policy,
        config: Config,
        prompts: Sequence[Prompt],
        salience: Salience,
    ) -> None:
        self.path: Path | None = None
        adapters = (model.get(key) for key in ("base of the adapter", "adapter at the start"))
        weights = [model.get("model"), *(digest for digest in adapters if digest is not None)]
        if not all(DIGEST.fullmatch(str(digest)) for digest in weights):
            return
        asked = prompts_for_heads(prompts, config.train.seed)
        # Not which engine will write, nor what a new adapter is like: it changes nothing yet.
        made_of = {
            "base": dict(model),
            "model": config.model.model_dump(mode="json", exclude={"name", "revision", "lora"}),
            "sampling": config.sampling.model_dump(mode="json", exclude={"engine", "vllm"}),
            "layers": config.reward.layers,
            "seed": config.train.seed,
            # A program may have given its tokenizer another, which no digest tells.
            "ends": list(policy.eos_ids),
            "prompts": [[prompt.index, prompt.occurrence, list(prompt.ids)] for prompt in asked],
            "pieces": [[salience.divide(prompt), salience.weigh(prompt)] for prompt in asked],
            "device": policy.device.type,
            "code of cagsr": code(),
            "versions": versions(),
        }
        self.key = fingerprint([json.dumps(made_of, sort_keys=True)])
        self.path = user_cache("heads") / f"{self.key[:32]}.json"

    def read(self) -> dict[str, Any] | None:
        """The heads that were found before; None where there are none, or none that can be believed."""
        if self.path is None:
            return None
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            found = kept["heads"]
            if kept["key"] != self.key or kept["sha256"] != self._seal(found):
                return None
            Heads.model_validate(found)
            return found
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError):
            return None

    def write(self, found: Mapping[str, Any]) -> None:
        """Keep what `learnt_heads.find_heads` found. A cache that cannot be written costs a run nothing but time."""
        if self.path is None:
            return
        found = json.loads(json.dumps(found))  # as it will be read: its layers are text
        kept = {"key": self.key, "sha256": self._seal(found), "heads": found}
        with suppress(StorageError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(kept) + "\n")

    def _seal(self, found: Any) -> str:
        return fingerprint([self.key, json.dumps(found, sort_keys=True)])
