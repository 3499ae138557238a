"""Pictures: one file a subject, each a function from plain arrays to a matplotlib figure.

Nothing is imported here, so that the formats can be checked before matplotlib takes its second.
"""

FORMATS = (".png", ".svg", ".pdf")
