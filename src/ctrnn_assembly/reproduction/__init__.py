"""The papers' experiments: what they ask for, their runs, and published and own figures side by side."""
