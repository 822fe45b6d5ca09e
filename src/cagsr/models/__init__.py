"""Language models: loading, policies of both architectures, decoding, log-probabilities, the vLLM client.

Import from its modules: `models.load_policy.load_policy`, `models.policy.Policy`.
"""
