"""Evaluate generators against real clips."""
