"""Evaluation: responses to held-out prompts, metrics, `cagsr eval` and `cagsr score`, comparison tables."""
