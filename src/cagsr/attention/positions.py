"""Positions of a model: the one its first token has, and how many it has for a text."""

from typing import Any

from torch import nn
from transformers import PretrainedConfig

__all__ = ["first_position", "longest_text", "skipped_token", "stable_length"]


def first_position(model: nn.Module) -> int:
    """The position of a text's first token: 0, or one past the padding's where a table of positions has such a row.

    RoBERTa and its kin derive positions from the ids and count from ``padding_idx + 1``.
    """
    return max((1 + int(table.padding_idx or 0) for table in _padded_tables(model)), default=0)


def longest_text(model: nn.Module, config: PretrainedConfig, half: str = "") -> int | None:
    """Tokens that ``model``, or the ``half`` ("encoder", "decoder") of one, has positions for; None: any number.

    The least of what the config says, of the rows of a table of learned positions that are left after its padding's,
    and of `stable_length`.
    """
    names = ("max_position_embeddings", f"max_{half}_position_embeddings")
    rows = [table.num_embeddings - first_position(model) for table in _padded_tables(model)]
    limits = [*(getattr(config, name, None) for name in names), *rows, stable_length(config)]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def skipped_token(model: nn.Module) -> int | None:
    """The padding token, where ``model`` counts its positions over the other tokens alone; None: it counts all.

    RoBERTa and its kin, M2M-100 and NLLB do; but what a cache holds they count whole.
    """
    found = [
        getattr(module, "padding_idx", None)
        for path, module in model.named_modules()
        if "position" in path.split(".")[-1]
    ]
    return next((int(token) for token in found if token is not None), None)


def stable_length(config: PretrainedConfig) -> int | None:
    """Tokens up to which dynamic and longrope scaling leave a token's rotation alone; None for other models.

    Past it every token of a text is turned anew when the text grows (and with it all that a cache holds): a response
    is then sampled from other distributions than those of a pass over the whole of it.
    """
    given: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [each for each in given.values() if isinstance(each, dict)]
    original = getattr(config, "original_max_position_embeddings", None)
    lengths = [
        kind.get("original_max_position_embeddings") or original or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=None)


def _padded_tables(model: nn.Module) -> list[nn.Embedding]:
    """Tables of learned positions that keep a row for padding."""
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and module.padding_idx is not None
        and "position" in path.split(".")[-1]
    ]
