"""Evaluate recognition: probe, fine-tune, test and compare heads."""
