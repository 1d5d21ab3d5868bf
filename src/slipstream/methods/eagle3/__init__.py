"""EAGLE-3: a one-layer head on hidden states of several of the target's layers drafts."""
