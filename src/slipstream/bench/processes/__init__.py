"""Peers of a benchmark that run in a process of their own, with whatever software they are made of."""
