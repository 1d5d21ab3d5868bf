"""How passes are run and what they cost on this device."""
