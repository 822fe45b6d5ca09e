"""Evaluation: responses to held-out prompts, metrics, `cagsr eval` and `cagsr score`, comparison tables.

Import from its modules: `evaluation.score.score`, `evaluation.evaluate.evaluate`.
"""
