"""Language models: loading, policies of both architectures, decoding, log-probabilities, the vLLM client."""
