"""The search for skip sets."""
