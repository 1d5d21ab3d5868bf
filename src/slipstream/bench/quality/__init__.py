"""Scores of answers against references and tests, plain beside every method."""
