"""Training of draft heads and of the demo models: data, losses, loops, checkpoint formats."""
