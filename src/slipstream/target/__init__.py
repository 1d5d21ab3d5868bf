"""The target: loading it, describing its passes, its masks and its KV cache."""
