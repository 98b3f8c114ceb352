"""Benchmarks of speed and memory; `suite.py` lists them."""
