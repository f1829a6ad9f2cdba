"""The acceptance tests, what each holds the program to, and the profiles that they belong to: the one table."""

import difflib
from collections.abc import Sequence

from dbex.errors import BadInput

#: What each test DB-AT-NNN is about.
TITLES = {
    "001": "images of the original nanoBragg",
    "002": "same inputs and seed, same bits",
    "010": "every derivative against differences",
    "011": "no free parameter without a gradient",
    "020": "boxes: order, bounds, what is refused",
    "021": "masks: polarity, shape, no influence",
    "022": "background: -1 outside, planes found again",
    "023": "ADU and photons are one model",
    "024": "correlation of the shipped still's spots",
    "025": "no default_F while interpolating",
    "026": "U, B, A equal dxtbx's",
    "027": "zero step is the forward model",
    "028": "starts far off end in one minimum",
    "029": "scale and correlation recovered",
    "030": "where read-out noise comes from",
    "031": "symmetry of reflections, intensities recovered",
    "032": "every panel's offsets and tilts",
    "040": "any pixel's whole chain",
    "050": "pictures that people read",
    "060": "esds cover the errors",
    "070": "many stills jointly",
    "080": "fuzzed inputs",
}

#: What `dbex.conformance` runs under each name.
PROFILES = {
    "forward": ("001", "002", "026"),
    "gradients": ("010", "011", "027", "028", "029"),
    "workflow": ("020", "021", "022", "023", "024", "025", "030", "080"),
    "stages": ("031", "032", "060", "070"),
    "tracing": ("040", "050"),
    "all": tuple(TITLES),
}


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The numbers of the tests that profiles and ids ("DB-AT-010") name, in order; raises BadInput for another name."""
    wanted: set[str] = set()
    known = [*PROFILES, *(f"DB-AT-{number}" for number in TITLES)]
    for name in names:
        if name in PROFILES:
            wanted.update(PROFILES[name])
        elif name.upper().replace("_", "-") in known:
            wanted.add(name[-3:])
        else:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise BadInput(f"there is no profile {name}: expected {', '.join(PROFILES)} or an id; did you mean {near}?")
    return tuple(number for number in TITLES if number in wanted)
