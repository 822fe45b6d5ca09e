"""Post-train language models with a reward read from their own attention to the prompt.

Names are imported when they are first used, so that ``import cagsr`` itself takes no time and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AttentionReward",
    "CagsrError",
    "Config",
    "Evidence",
    "InputError",
    "Reward",
    "Scores",
    "Term",
    "Trainer",
    "TrainingConfig",
    "UnsupportedModelError",
    "calibrate",
    "compare",
    "heatmap",
    "load_policy",
    "probe",
    "score",
    "train",
]

if TYPE_CHECKING:
    from cagsr.config import Config
    from cagsr.config.schema import Term
    from cagsr.config.training_config import TrainingConfig
    from cagsr.errors import CagsrError, InputError, UnsupportedModelError
    from cagsr.evaluation.score import score
    from cagsr.experiments.compare import compare
    from cagsr.integrations.trl import AttentionReward
    from cagsr.models.load_policy import load_policy
    from cagsr.probing.calibrate import calibrate
    from cagsr.probing.run import probe
    from cagsr.report.heatmap import heatmap
    from cagsr.rewards.reward import Reward
    from cagsr.training.trainer import Trainer, train
    from cagsr.types import Evidence, Scores

# The same again for the interpreter: where each name lives.
_MODULES = {
    "AttentionReward": "cagsr.integrations.trl",
    "CagsrError": "cagsr.errors",
    "Config": "cagsr.config",
    "Evidence": "cagsr.types",
    "InputError": "cagsr.errors",
    "Reward": "cagsr.rewards.reward",
    "Scores": "cagsr.types",
    "Term": "cagsr.config.schema",
    "Trainer": "cagsr.training.trainer",
    "TrainingConfig": "cagsr.config.training_config",
    "UnsupportedModelError": "cagsr.errors",
    "calibrate": "cagsr.probing.calibrate",
    "compare": "cagsr.experiments.compare",
    "heatmap": "cagsr.report.heatmap",
    "load_policy": "cagsr.models.load_policy",
    "probe": "cagsr.probing.run",
    "score": "cagsr.evaluation.score",
    "train": "cagsr.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
