"""Files that runs leave behind: how they are written and read."""
