"""What a server takes, and for how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Beyond these a request is refused, in a sentence.

    Attributes
    ----------
    texts : of one request
    characters : of one text; models cut off what they do not read
    body : bytes of a request
    waiting : requests that may wait at the same time
    seconds : from a request to its answer
    reading : seconds within which a request must have arrived
    window : seconds that requests wait for one another at most, to be answered together
    """

    texts: int = 1000
    characters: int = 100_000
    body: int = 1_000_000
    waiting: int = 256
    seconds: float = 30.0
    reading: float = 10.0
    window: float = 0.005

    @property
    def connections(self) -> int:
        """Open at the same time; far more than may wait, so that these are refused in words."""
        return 4 * self.waiting + 64
