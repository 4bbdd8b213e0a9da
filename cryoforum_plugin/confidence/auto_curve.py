"""What --auto chose from: figures of nested sets, for people and for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CurvePoint:
    """One of the nested sets.

    threshold : lowest confidence in it. score : mean over Fourier components of log(1 + SSNR) of a half map, nat.
    resolution_A, worst_A : FSC 0.143 of the half maps, over the sphere and in the worst direction. view_coverage :
    sampling compensation factor. allowed : whether it could be chosen.
    """

    threshold: float
    kept: int
    score: float
    resolution_A: float
    worst_A: float
    view_coverage: float
    allowed: bool


@dataclass(frozen=True)
class AutoCurve:
    """Nested sets from small to large, and which of them was chosen."""

    points: tuple[CurvePoint, ...]
    chosen: int

    def figures(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        digits = {"threshold": 4, "score": 5, "resolution_A": 3, "worst_A": 3, "view_coverage": 4}
        return {
            "curve": [
                {
                    name: round(value, digits[name]) if name in digits else value
                    for name, value in vars(point).items()
                }
                for point in self.points
            ],
            "chosen": self.chosen,
        }

    def lines(self) -> list[str]:
        """Return a table for people."""
        head = f"{'kept':>9} {'confidence':>10} {'clarity':>8} {'FSC 0.143':>10} {'worst':>8} {'views':>6}"
        rows = [
            f"{p.kept:9d} {p.threshold:10.3f} {p.score:8.4f} {p.resolution_A:8.2f} Å {p.worst_A:6.2f} Å "
            f"{p.view_coverage:6.3f}{' <- chosen' if i == self.chosen else '' if p.allowed else ' not allowed'}"
            for i, p in enumerate(self.points)
        ]
        return [head, *rows]
