"""Inner parts of the command line."""
