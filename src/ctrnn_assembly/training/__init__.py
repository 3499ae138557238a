"""Training: a configuration, a loop, a run folder."""
