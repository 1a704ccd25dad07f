"""Corruptions: what stands between a clean picture and an observation of it.

Each is a frozen dataclass that is its own configuration: `Gaussian(sigma=25/255)(key, clean)` gives
an `Observation` of one picture, H,W,C float32 in display units. `str(corruption)` and `parse(text)`
are inverse.
"""

from __future__ import annotations

from n2n.corruptions.base import Corruption as Corruption
from n2n.corruptions.basic import Bernoulli as Bernoulli
from n2n.corruptions.basic import Brown as Brown
from n2n.corruptions.basic import Chain as Chain
from n2n.corruptions.basic import Clean as Clean
from n2n.corruptions.basic import Gaussian as Gaussian
from n2n.corruptions.basic import Grey as Grey
from n2n.corruptions.basic import Impulse as Impulse
from n2n.corruptions.basic import Poisson as Poisson
from n2n.corruptions.blur import PSF as PSF
from n2n.corruptions.blur import Blur as Blur
from n2n.corruptions.blur import Defocus as Defocus
from n2n.corruptions.blur import Measured as Measured
from n2n.corruptions.blur import Motion as Motion
from n2n.corruptions.camera import Camera as Camera
from n2n.corruptions.jpeg import JPEG as JPEG
from n2n.corruptions.parse import parse as parse
from n2n.corruptions.text import Text as Text
