"""Pictures: one file each, a function from plain arrays to a matplotlib figure; nothing is computed."""
