"""Side-by-side runs of the methods."""
