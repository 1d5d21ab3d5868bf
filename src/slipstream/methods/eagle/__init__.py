"""EAGLE-1 and EAGLE-2: a one-layer head on the target's features drafts."""
