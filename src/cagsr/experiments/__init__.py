"""Experiments: `cagsr compare` and `cagsr demo`, and the systems that are compared.

Import from its modules: `experiments.compare.compare`, `experiments.demo.demo`.
"""
