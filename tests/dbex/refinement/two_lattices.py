"""An image of two crystals, the second turned and weaker, as files: spots overlap here and there."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from dials.array_family import flex
from dxtbx.model.experiment_list import Experiment, ExperimentList

from dbex.io.images import RawImage
from dbex.models import to_dxtbx_crystal
from dbex.still import Still
from nanobrag_torch.rotation import rotation_from_vector
from tests.dbex.refinement.closed_form import LN_SCALE, Truth, drawn_still, truth_of

#: By how much the second crystal is turned, degrees, and its intensity over that of the first.
TURN_DEG, RELATIVE = (0.4, 0.3, 0.6), 0.4


@dataclass(frozen=True)
class Drawn:
    """The truths of the two crystals, each with what is seen of it, and the image of both."""

    truths: tuple[Truth, Truth]
    stills: tuple[Still, Still]

    @property
    def image(self):
        return self.stills[0].images_photons

    def written(self, folder, places=(0, 1)):
        """The .expt and .refl of the two crystals in this order."""
        experiments, table = ExperimentList(), flex.reflection_table()
        for number, place in enumerate(places):
            still = self.stills[place]
            read = still.experiment
            crystal = to_dxtbx_crystal(still.crystal, copy.deepcopy(read.crystal))
            experiments.append(
                Experiment(beam=read.beam, detector=read.detector, crystal=crystal, imageset=read.imageset)
            )
            table.extend(rows(still.observed, number))
        expt, refl = Path(folder) / "two.expt", Path(folder) / "two.refl"
        experiments.as_file(str(expt))
        table.as_file(str(refl))
        return expt, refl

    def as_read(self, experiment, name):
        """What reading the image gives."""
        (image,) = self.image
        return RawImage(Path(experiment.imageset.paths()[0]), (image.astype(np.int32),), True, None)


def two_lattices(still):
    """Both drawn on the geometry of `still`, their images added."""
    turn = rotation_from_vector(torch.deg2rad(torch.tensor(TURN_DEG, dtype=torch.float64))).numpy()
    U = turn @ np.array(still.crystal.U)
    turned = replace(still, crystal=replace(still.crystal, U=tuple(map(tuple, U.tolist()))))
    truths = truth_of(still), scaled(truth_of(turned), RELATIVE)
    one, two = (drawn_still(of, truth, seed) for of, truth, seed in zip((still, turned), truths, (1, 2), strict=True))
    # the sum of Poisson deviates is one
    image = tuple(a + b for a, b in zip(one.images_photons, two.images_photons, strict=True))
    return Drawn(truths, tuple(replace(drawn, images_photons=image) for drawn in (one, two)))


def scaled(truth, by):
    """The truth of a crystal of another volume."""
    map = replace(truth.map, ln_scale=LN_SCALE + np.log(by))
    return Truth(map, map.models(truth.zero))


def rows(observed, number):
    """The spots of one experiment as DIALS holds them."""
    table = flex.reflection_table()
    count = len(observed)
    table["id"] = flex.int(count, number)
    table["miller_index"] = flex.miller_index([tuple(map(int, h)) for h in observed.hkl])
    table["panel"] = flex.size_t(observed.panel.tolist())
    table["bbox"] = flex.int6([(*map(int, box), 0, 1) for box in observed.bbox])
    table["xyzobs.px.value"] = flex.vec3_double([(x, y, 0.5) for x, y in observed.xy_px.tolist()])
    table["flags"] = flex.size_t(count, int(table.flags.indexed))
    return table
