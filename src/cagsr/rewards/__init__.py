"""Rewards: signals and salience, their weighted sum, presets, calibration of the weights, reward models.

Import from its modules: `rewards.reward.Reward`, `rewards.presets.load_preset`, `rewards.signals.SIGNALS`.
"""
