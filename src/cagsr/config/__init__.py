"""The config of a run: a YAML file, dotted overrides that win over it, and one message for each mistake.

``Config.load`` reads and checks, ``Config.dump`` writes what was resolved, ``reference`` documents every key,
``check_paths`` looks at the disk before a model is loaded. Nothing here imports torch.
"""

from cagsr.config.loading import Config
from cagsr.config.paths import check_paths
from cagsr.config.reference import reference

__all__ = ["Config", "check_paths", "reference"]
