"""Where counts come from: one reader per format."""
