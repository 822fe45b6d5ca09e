"""Training: `Trainer`, the step and its loop, estimators, losses, supervised fine-tuning, DPO, reward models.

Import from its modules: `training.trainer.Trainer`, `training.step.Step`, `training.dpo.prefer`.
"""
