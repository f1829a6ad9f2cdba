"""Images as NXmx files (NeXus in HDF5), which dxtbx reads: one panel or many, of any size."""

import h5py
import numpy as np

#: NeXus looks along the beam with x to the left, dxtbx against it.
MCSTAS = np.diag([-1.0, 1.0, -1.0])


def write_nexus(path, images, detector, wavelength_A, frames=1):
    """One image of some panels, the arrays `images` (slow, fast) one above the other in one data set; of `frames` the
    last, the others empty."""
    sizes = [image.shape for image in images]
    first = np.cumsum([0, *(rows for rows, _ in sizes)])
    stack = np.full((frames, first[-1], max(columns for _, columns in sizes)), -1, images[0].dtype)
    stack[:-1] = 0
    for image, row in zip(images, first, strict=False):
        stack[-1, row : row + image.shape[0], : image.shape[1]] = image
    with h5py.File(path, "w") as file:
        entry = group(file, "entry", "NXentry")
        entry["definition"] = "NXmx"
        entry["start_time"] = "2026-01-01T00:00:00Z"
        data = group(entry, "data", "NXdata", signal="data")
        data["data"] = stack
        group(entry, "sample", "NXsample")["name"] = "crystal"
        instrument = group(entry, "instrument", "NXinstrument")
        instrument["name"] = "none"
        quantity(group(instrument, "beam", "NXbeam"), "incident_wavelength", wavelength_A, "angstrom")
        parts = group(instrument, "detector", "NXdetector")
        first_panel = detector[0]
        parts["sensor_material"] = "Si"
        quantity(parts, "sensor_thickness", first_panel.get_thickness(), "mm")
        low, high = first_panel.get_trusted_range()
        parts["underload_value"], parts["saturation_value"] = int(low) + 1, int(high)
        moves = group(parts, "transformations", "NXtransformations")
        for number, (panel, shape, row) in enumerate(zip(detector, sizes, first, strict=False)):
            module(parts, moves, number, panel, shape, row)
    return path


def module(parts, moves, number, panel, shape, row):
    """A panel's place in the data and in the laboratory."""
    found = group(parts, f"module_{number:03d}", "NXdetector_module")
    found["data_origin"], found["data_size"] = [row, 0], list(shape)
    offset = f"offset_{number:03d}"
    axis(moves, offset, 0.0, MCSTAS @ (0.0, 0.0, 1.0), ".", MCSTAS @ panel.get_origin())
    for name, edge, size in zip(
        ("fast", "slow"), (panel.get_fast_axis(), panel.get_slow_axis()), panel.get_pixel_size(), strict=True
    ):
        axis(found, f"{name}_pixel_direction", size, MCSTAS @ edge, f"{moves.name}/{offset}", np.zeros(3))


def axis(where, name, value, vector, depends_on, offset_mm):
    """A translation by `value` mm along a vector, after an offset."""
    found = quantity(where, name, np.array([value]), "mm")
    found.attrs.update(
        {
            "transformation_type": "translation",
            "vector": np.asarray(vector, float),
            "depends_on": depends_on,
            "offset": np.asarray(offset_mm, float),
            "offset_units": "mm",
        }
    )


def group(where, name, kind, **attributes):
    """A NeXus group of this class."""
    found = where.create_group(name)
    found.attrs.update({"NX_class": kind} | attributes)
    return found


def quantity(where, name, value, units):
    """A number with its units."""
    found = where.create_dataset(name, data=value)
    found.attrs["units"] = units
    return found
