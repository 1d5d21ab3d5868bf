"""Answers to a file of prompts: resumable, shared among processes, the same bytes whoever answered."""
