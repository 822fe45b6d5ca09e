"""The salience that a config asks for, and the check that it finds something in the prompts."""

from collections.abc import Sequence

from cagsr.config import Config
from cagsr.errors import InputError
from cagsr.rewards.presets import as_read
from cagsr.rewards.salience.base import ROLES, Salience
from cagsr.rewards.salience.column import Column
from cagsr.rewards.salience.content import Idf, Span, Uniform
from cagsr.rewards.salience.divided import Pieces
from cagsr.types import Prompt

__all__ = ["NothingToCoverError", "build_salience", "demand_content"]


class NothingToCoverError(InputError):
    """What counts is in none of the prompts; ``why`` says so in short."""

    why = "no prompt has a piece of its own"


def demand_content(salience: Salience, prompts: Sequence[Prompt]) -> None:
    """Raise NothingToCoverError where what was asked for (a span, a column, rare words, roles, ...) is in no prompt."""
    roles = getattr(salience, "roles", ROLES)
    if isinstance(salience, Span):
        kind, mend = "span", "Correct its start, end or pattern"
    elif isinstance(salience, Column):
        kind, mend = "column", "Correct its list"
    elif isinstance(salience, Idf) and salience.frequencies:
        kind, mend = (
            "idf",
            "A word that every prompt has weighs 0: set reward.salience.kind: uniform, or give more prompts",
        )
    elif tuple(roles) != ROLES:
        there = sorted({turn.role for prompt in prompts for turn in prompt.turns})
        kind, mend = "roles", f"Set reward.salience.roles; the prompts have turns of {', '.join(there)}"
    elif isinstance(salience, Pieces):
        kind, mend = "pieces", "Set reward.salience.kind: uniform"
    else:
        return
    if len(salience.without_content(prompts)) == len(prompts):
        raise NothingToCoverError(
            f"salience {kind}: none of {len(prompts)} prompts has a token that counts, so every response would cover "
            f"nothing. {mend}; the first prompt is {prompts[0].text!r:.160}"
        )


def build_salience(config: Config, prompts: Sequence[Prompt]) -> Salience:
    """Build the salience of ``reward.salience``, or the preset's; document frequencies are those of ``prompts``.

    Raises NothingToCoverError as `demand_content` does.
    """
    given = as_read(config).reward.salience
    salience: Salience = Uniform(roles=given.roles)
    if given.kind == "idf":
        salience = Idf(prompts, power=given.power, roles=given.roles)
    elif given.kind == "span":
        salience = Span(given.start, given.end, given.pattern, roles=given.roles)
    elif given.kind == "pieces":
        salience = Pieces(prompts, given.most, given.roles)
    elif given.kind == "column":
        salience = Column(str(config.data.salience_column))
    demand_content(salience, prompts)
    return salience
