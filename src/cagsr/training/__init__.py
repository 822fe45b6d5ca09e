"""Training: `Trainer`, the step and its loop, estimators and losses, supervised fine-tuning, DPO, reward models."""
