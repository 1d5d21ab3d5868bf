"""Hydra: heads that each know the tokens drafted before them draft."""
