"""Heads on token grids. Empty yet: recognition heads follow."""
