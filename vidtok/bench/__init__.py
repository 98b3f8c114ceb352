"""Measurements of speed and memory: `suite.py` says what there is."""
