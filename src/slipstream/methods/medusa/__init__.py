"""Medusa: heads that each guess one token further ahead draft."""
