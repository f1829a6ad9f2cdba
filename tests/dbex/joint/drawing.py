"""What a joint solution of drawn stills ends with, and the truth that it was drawn from."""

import numpy as np


def ended(drawn):
    """The last round of each still."""
    return [drawn.visitor.ended(drawn.joint.task(place))[1] for place in range(len(drawn.stills))]


def shared_truth(drawn):
    """The shared numbers at which the believed detector is the true one: no tilt, so plain differences."""
    true, believed = drawn.truth[0], drawn.visitor.detector[0]
    values = {
        "distance": true.distance_mm - believed.distance_mm,
        "shift_fast": true.origin_fast_mm - believed.origin_fast_mm,
    }
    return np.array([values.get(p.name, 0.0) for p in drawn.joint.common.parameters])
