"""Salience: weights of the prompt tokens that a response ought to cover.

A salience is called with a rollout and gives ``w [P S]``: rows sum to 1, or are all 0 where a prompt has no
content token. Which side is padded does not matter; the prompt mask says where the tokens stand.
"""

from cagsr.rewards.salience.base import Salience, evidence_of
from cagsr.rewards.salience.build import NothingToCoverError, build_salience, demand_content
from cagsr.rewards.salience.column import Column
from cagsr.rewards.salience.content import Idf, Span, Uniform
from cagsr.rewards.salience.divided import Pieces

__all__ = [
    "Column",
    "Idf",
    "NothingToCoverError",
    "Pieces",
    "Salience",
    "Span",
    "Uniform",
    "build_salience",
    "demand_content",
    "evidence_of",
]
