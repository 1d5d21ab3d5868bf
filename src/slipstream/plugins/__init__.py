"""Models of ours in other people's programs. Each file is loaded by its program, by an entry point of the package."""
