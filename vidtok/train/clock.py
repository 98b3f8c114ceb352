"""Seconds per step, clips per second, and when the next line or checkpoint is due."""

import time


class Clock:
    """log_seconds, save_seconds: between progress lines; between checkpoints."""

    def __init__(self, log_seconds: float, save_seconds: float):
        self.log_seconds, self.save_seconds = log_seconds, save_seconds
        self.last = self.logged = self.saved = time.monotonic()
        self.clips = 0

    def tick(self, clips: int) -> float:
        """Counts the clips of one step; the seconds since the last one."""
        now = time.monotonic()
        passed, self.last = now - self.last, now
        self.clips += clips
        return passed

    def log_due(self) -> bool:
        return self.last - self.logged >= self.log_seconds

    def clips_per_second(self) -> float:
        """Since the last call."""
        rate = self.clips / max(self.last - self.logged, 1e-9)
        self.logged, self.clips = self.last, 0
        return rate

    def save_due(self) -> bool:
        """Whether it is time, and if so the next time is set."""
        due = self.last - self.saved >= self.save_seconds
        if due:
            self.saved = self.last
        return due
