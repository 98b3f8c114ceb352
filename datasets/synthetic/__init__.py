"""Labeled clips that the package makes itself: moving digits, and motion tasks over unlabeled videos."""
