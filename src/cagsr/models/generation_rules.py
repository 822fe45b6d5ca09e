"""What a model's generation config asks of sampling: tokens that are never written are honoured, and the rest is named.

Which tokens are forbidden is a part of the distribution: sampling and scoring both leave them out, so that a policy is
trained on what it draws from. A penalty for what was written before would make each token's distribution another, and
is refused. What the section ``sampling`` sets by keys of its own is overruled.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from cagsr.errors import InputError, closest

__all__ = ["GenerationRules"]

# Setting -> the value, beside None, that changes nothing.
REFUSED: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "sequence_bias": {},
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "watermarking_config": None,
    "stop_strings": None,
    "forced_decoder_ids": [],
    "force_words_ids": None,
    "constraints": None,
    "dola_layers": None,
    "token_healing": False,
}
# Setting -> what the section sampling has instead.
OVERRULED: dict[str, tuple[Any, str]] = {
    "temperature": (1.0, "temperature"),
    "top_k": (0, "top_k"),
    "top_p": (1.0, "top_p"),
    "min_length": (0, "min_new_tokens"),
    "min_new_tokens": (0, "min_new_tokens"),
    "max_time": (None, "max_new_tokens"),
    "forced_eos_token_id": (None, "max_new_tokens"),
    "num_beams": (1, "candidates"),
    "num_beam_groups": (1, "candidates"),
}
MASKS = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class GenerationRules:
    """The rules of one model.

    never      tokens that no response has;  not_first  tokens that none begins with
    undrawn    tokens that are scored as any other and never drawn
    refused    settings that are not kept, with their values: nothing is sampled while there are any
    overruled  settings in whose place ``sampling`` has its own, with their values
    """

    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    undrawn: tuple[int, ...] = ()
    refused: tuple[tuple[str, Any], ...] = ()
    overruled: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(
        cls, config: GenerationConfig, eos_ids: Sequence[int], causal: bool, ignored: Iterable[str] = ()
    ) -> "GenerationRules":
        """The rules of a generation config but for its settings named in ``ignored``.

        Raises InputError for a name that is no such setting.
        """
        known = {*REFUSED, *MASKS, "forced_bos_token_id"}
        for name in ignored:
            if name not in known:
                raise InputError(
                    f"sampling.ignore_generation_config: unknown setting {name!r}{closest(name, known)}"
                )
        given = {name: getattr(config, name, None) for name in {*known, *OVERRULED} - {*ignored}}
        bad_words = given.get("bad_words_ids") or []
        never = [word[0] for word in bad_words if len(word) == 1 and word[0] not in eos_ids]
        neutral = {**REFUSED, **{name: value for name, (value, _) in OVERRULED.items()}}
        set_here = {name: given[name] for name in neutral if given.get(name) not in (None, neutral[name])}
        refused = [(name, value) for name, value in set_here.items() if name in REFUSED]
        refused += [("bad_words_ids", word) for word in bad_words if len(word) > 1][:1]
        if causal and given.get("forced_bos_token_id") is not None:
            refused.append(("forced_bos_token_id", given["forced_bos_token_id"]))
        return cls(
            never=tuple(sorted({*never, *(given.get("suppress_tokens") or ())})),
            not_first=tuple(given.get("begin_suppress_tokens") or ()),
            refused=tuple(refused),
            overruled=tuple((name, value) for name, value in set_here.items() if name in OVERRULED),
        )

    def masked(self, logits: Tensor, first: Tensor | slice) -> Tensor:
        """The logits [m V], -inf where a token is forbidden; ``first`` are the rows that predict a first token."""
        if not self.never and not self.not_first:
            return logits
        # A config may name tokens that its model does not have.
        never, not_first = (
            torch.tensor([t for t in tokens if 0 <= t < logits.shape[-1]], device=logits.device)
            for tokens in (self.never, self.not_first)
        )
        if len(never):
            logits = logits.index_fill(-1, never, -torch.inf)
        if len(not_first):
            logits = logits.clone()
            logits[first] = logits[first].index_fill(-1, not_first, -torch.inf)
        return logits

    def drawable(self, logits: Tensor) -> Tensor:
        """The logits [m V], -inf where a token is ``undrawn``."""
        undrawn = torch.tensor(self.undrawn, dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, undrawn, -torch.inf) if self.undrawn else logits

    def described(self) -> dict[str, list[str]]:
        """What `cagsr doctor` says of them, by kind; kinds without any are left out."""
        tokens = [f"{token} never" for token in self.never] + [
            f"{token} not first" for token in self.not_first
        ]
        kinds = {
            "forbidden_tokens": tokens,
            "refused_of_generation_config": [f"{name} {value}" for name, value in self.refused],
            "overruled_of_generation_config": [f"{name} {value}" for name, value in self.overruled],
        }
        return {kind: found for kind, found in kinds.items() if found}

    def check(self) -> None:
        """Raise InputError for settings that are refused, with the line that leaves them out."""
        if not self.refused:
            return
        names = list(dict.fromkeys(name for name, _ in self.refused))
        told = ", ".join(f"{name} {value}" for name, value in self.refused)
        raise InputError(
            f"the model's generation_config.json asks for {told}, which sampling here does not keep: what is trained "
            "would be another distribution than the one that is drawn from. To sample without, set "
            f"sampling.ignore_generation_config: [{', '.join(names)}]"
        )

    def overrule(self) -> str | None:
        """What to say of the settings that the section ``sampling`` overrules; None: nothing."""
        if not self.overruled:
            return None
        told = ", ".join(f"{name} {value}" for name, value in self.overruled)
        keys = list(dict.fromkeys(OVERRULED[name][1] for name, _ in self.overruled))
        held = " and ".join(f"sampling.{key}" for key in keys)
        return f"the model's generation_config.json has {told}; here {held} holds instead"
