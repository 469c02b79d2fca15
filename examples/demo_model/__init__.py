"""The demo checkpoint: its data, its training and its export. See README.md."""
