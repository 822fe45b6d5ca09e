"""Prompts and responses from data sets: readers, column mapping, chat templates, truncation, splits, pairs.

Import from its modules: `data.readers.read`, `data.prompts.encode`, `data.splits.build_prompts`.
"""
