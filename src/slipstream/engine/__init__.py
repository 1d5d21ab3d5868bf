"""The loop that drafts, verifies and commits."""
