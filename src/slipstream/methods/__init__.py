"""The decoding methods: a file or a folder each, and a registry of them all."""
