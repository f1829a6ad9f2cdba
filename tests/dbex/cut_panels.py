"""The shipped still on a detector of many panels of unequal sizes: the same sensor, cut."""

import copy
import pickle
from dataclasses import dataclass

import numpy as np
from dials.array_family import flex
from dxtbx.model import Detector
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory

from dbex.io.images import read_image
from tests.dbex.nexus import write_nexus


@dataclass(frozen=True)
class Cut:
    """Borders of the panels along slow and fast, in pixels: len(slow) - 1 rows of len(fast) - 1 panels."""

    slow: np.ndarray
    fast: np.ndarray

    @staticmethod
    def drawn(shape, rows, columns, seed=4):
        """At random places, no panel narrower than half of the mean one."""
        rng = np.random.default_rng(seed)
        edges = []
        for size, count in zip(shape, (rows, columns), strict=True):
            inner = np.linspace(0, size, count + 1)[1:-1] + rng.uniform(-0.25, 0.25, count - 1) * size / count
            edges.append(np.array([0, *np.round(inner).astype(int), size]))
        return Cut(*edges)

    @property
    def panels(self):
        """Corner (slow, fast) and shape of each."""
        for top, bottom in zip(self.slow, self.slow[1:], strict=False):
            for left, right in zip(self.fast, self.fast[1:], strict=False):
                yield (int(top), int(left)), (int(bottom - top), int(right - left))

    def detector(self, panel):
        """The panel as a detector of its parts."""
        found = Detector()
        size = np.array(panel.get_pixel_size())
        fast, slow = (np.array(edge) for edge in (panel.get_fast_axis(), panel.get_slow_axis()))
        for number, ((top, left), (rows, columns)) in enumerate(self.panels):
            part = copy.deepcopy(panel)
            origin = np.array(panel.get_origin()) + left * size[0] * fast + top * size[1] * slow
            part.set_frame(tuple(fast), tuple(slow), tuple(origin))
            part.set_image_size((columns, rows))
            part.set_name(f"part {number}")
            found.add_panel(part)
        return found

    def images(self, image):
        """What each panel holds of an image."""
        return [image[top : top + rows, left : left + columns] for (top, left), (rows, columns) in self.panels]

    def table(self, table):
        """Reflections of the whole panel as those of the parts on which their centroids lie, their boxes clipped."""
        found = flex.reflection_table()
        found.extend(table)
        xyz, boxes = (np.array(table[name]) for name in ("xyzobs.px.value", "bbox"))
        row = np.searchsorted(self.slow, xyz[:, 1], side="right") - 1
        column = np.searchsorted(self.fast, xyz[:, 0], side="right") - 1
        corner = np.stack([self.fast[column], self.slow[row]], -1)
        limit = np.stack([self.fast[column + 1], self.slow[row + 1]], -1) - corner
        xyz[:, :2] -= corner
        for axis in (0, 1):
            edges = boxes[:, 2 * axis : 2 * axis + 2] - corner[:, axis : axis + 1]
            boxes[:, 2 * axis : 2 * axis + 2] = np.clip(edges, 0, limit[:, axis : axis + 1])
        found["panel"] = flex.size_t((row * (len(self.fast) - 1) + column).tolist())
        found["xyzobs.px.value"] = flex.vec3_double([tuple(v) for v in xyz.tolist()])
        found["bbox"] = flex.int6([tuple(box) for box in boxes.tolist()])
        if "shoebox" in found:
            del found["shoebox"]
        return found


def written(files, folder, cut, frames=1):
    """The still of these files on the parts of its panel, its image in a NeXus file: .expt, .refl and mask."""
    (read,) = ExperimentListFactory.from_json_file(str(files.expt), check_format=False)
    (image,) = read_image(read, "still").panels
    detector = cut.detector(read.detector[0])
    nexus = write_nexus(
        folder / "still.nxs", cut.images(image.astype(np.int32)), detector, read.beam.get_wavelength(), frames
    )
    experiment = ExperimentListFactory.from_filenames([str(nexus)])[frames - 1]
    experiment.crystal = read.crystal
    expt, refl, mask = (folder / name for name in ("still.expt", "still.refl", "mask.pkl"))
    ExperimentList([experiment]).as_file(str(expt))
    cut.table(flex.reflection_table.from_file(str(files.refl))).as_file(str(refl))
    (trusted,) = pickle.loads(files.mask.read_bytes())
    parts = cut.images(trusted.as_numpy_array())
    mask.write_bytes(pickle.dumps(tuple(flex.bool(np.ascontiguousarray(part)) for part in parts)))
    return expt, refl, mask
