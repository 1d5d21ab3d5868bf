"""Prompts and side-by-side runs of the methods."""
