"""Prompts and responses from data sets: readers, column mapping, chat templates, truncation, splits, pairs."""
