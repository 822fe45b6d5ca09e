"""The sections of a config, by subject: every key, its range, its default, and what it means."""

from cagsr.config.schema.data import FILES, IN_MEMORY, NOT_OF_TEMPLATES, Data
from cagsr.config.schema.metrics import Compare, Judge, Metrics
from cagsr.config.schema.model import Lora, Model
from cagsr.config.schema.reward import RewardSettings, SalienceSettings, Term
from cagsr.config.schema.sampling import Sampling, Vllm
from cagsr.config.schema.sft import Scratch, Sft
from cagsr.config.schema.training import AlgorithmSettings, Limit, Loss, Run, Train, WatchSettings

__all__ = [
    "FILES",
    "IN_MEMORY",
    "NOT_OF_TEMPLATES",
    "AlgorithmSettings",
    "Compare",
    "Data",
    "Judge",
    "Limit",
    "Lora",
    "Loss",
    "Metrics",
    "Model",
    "RewardSettings",
    "Run",
    "SalienceSettings",
    "Sampling",
    "Scratch",
    "Sft",
    "Term",
    "Train",
    "Vllm",
    "WatchSettings",
]
