"""What a run that leaves its path is told by, and where it goes back to."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from n2n import devices

WINDOW = 100
"""Steps that a verdict is made of; runs are judged at its multiples, whatever the chunks."""
MEMORY = 2
"""Windows whose lowest median a loss is compared with; annealed losses rise in longer times."""
LOST = 20.0
"""Factor above that from which on a run, if it is also worse than at its beginning, is lost."""
SOUND = 2.0
"""Factor up to which a state is worth going back to; the last quarter of its window, too."""
SETBACKS = 5
"""Times that a run goes back, to half the rate each, before it gives up."""


class Guard:
    """Keep the last sound state of a run, and say when the run is lost.

    The median of a window's losses is judged, since single losses may have heavy tails (Poisson
    noise of a few photons). A loss that is not finite is lost at once.
    """

    def __init__(self, state: Any):
        self.losses: list[float] = []
        self.medians: list[float] = []
        self.first = 0.0
        self.sound: Any = _copied(state)

    def left(self, step: int) -> int:
        """Return how many steps there are to the next verdict."""
        return WINDOW - step % WINDOW

    def lost(self, losses: np.ndarray, step: int, state: Any) -> bool:
        """Take the losses that led to `step` and say whether the run is lost."""
        if not np.isfinite(losses).all():
            return True
        self.losses += losses.tolist()
        if step % WINDOW:
            return False
        median, late = (float(np.median(self.losses[-n:])) for n in (WINDOW, WINDOW // 4))
        self.losses = []
        lowest = min(self.medians, default=math.inf)
        self.first = self.first or median
        if median > max(LOST * lowest, self.first):
            return True
        self.medians = [*self.medians[1 - MEMORY :], median]
        if max(median, late) <= SOUND * lowest:
            copy = _copied(state)
            if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copy.params)):
                self.sound = copy
        return False

    def back(self) -> Any:
        """Return the last sound state; what was seen since is forgotten."""
        self.losses, self.medians = [], []
        return self.sound


def _copied(state: Any) -> Any:
    """Return a state on the host: the next step takes over its buffers."""
    return jax.tree.map(np.array, jax.device_get(devices.local(state)))
