"""Evaluate reconstructions of a tokenizer."""
