"""What lies on disk: the files that ship with the package, and what is kept in the user's cache."""
