"""Pictures: one file a subject, each a function from plain arrays to a matplotlib figure."""
