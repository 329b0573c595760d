"""What a measurement says: a value, its interval, and how many samples it stands on."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A share of successes with its 95 % interval (Wilson 1927)."""

    successes: int
    count: int

    @property
    def value(self) -> float:
        """successes / count"""
        return self.successes / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %."""
        z, n, p = 1.959964, self.count, self.value
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))

    def plain(self, name: str) -> dict[str, float | int | list[float]]:
        """For a report: the value, its interval and its count."""
        return {name: self.value, f"{name}_interval": list(self.interval), f"{name}_count": self.count}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f}  [{low:.3f}, {high:.3f}]  of {self.count}"
