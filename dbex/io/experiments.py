"""Experiment lists (.expt): read without touching the images, then checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dxtbx.model.experiment_list import Experiment, ExperimentListFactory

from dbex.errors import BadInput
from dbex.io.files import reading
from dbex.io.masks import check_shapes, read_map
from dbex.models import create_beam_config, create_crystal_config, create_detector_config
from dbex.still import Floats

KIND = "an experiment list (.expt)"

#: No panel stands nearer to a crystal: a distance below this is a zero that tilted axes have blurred, mm.
LEAST_DISTANCE_MM = 5.0

#: What the file of a map of read-out noise has in its name, where it sits in the slot for pedestals.
NAMES_OF_NOISE = ("sigma", "noise", "rms", "std")


def read_experiments(path: str | Path) -> Any:
    """The dxtbx ExperimentList of a file, at least one experiment long. Raises BadInput."""
    with reading(path, KIND) as file:
        experiments = ExperimentListFactory.from_json_file(str(file), check_format=False)
    if not len(experiments):
        raise BadInput(f"{path} holds no experiment: expected at least one; index the image first")
    return experiments


def check_experiment(experiment: Any, name: str) -> None:
    """Raise BadInput unless crystal, beam and detector are there and make sense: square pixels, a wavelength, a
    distance, no NaN."""
    for part in ("crystal", "beam", "detector", "imageset"):
        if getattr(experiment, part) is None:
            raise BadInput(f"{name} has no {part}: expected an indexed experiment; index the image first")
    if len(experiment.imageset) != 1:
        raise BadInput(f"{name} has {len(experiment.imageset)} images: expected one still; split it into stills")
    create_crystal_config(experiment.crystal, experiment)
    create_beam_config(experiment.beam)
    for panel in experiment.detector:
        create_detector_config(panel, experiment.beam)
        if abs(panel.get_directed_distance()) < LEAST_DISTANCE_MM:
            raise BadInput(
                f"{name}: the distance of panel {panel.get_name()} is {panel.get_directed_distance():.3g} mm: "
                f"expected at least {LEAST_DISTANCE_MM:g} mm; correct the detector model"
            )


def with_crystal(experiment: Any, crystal: Any) -> Any:
    """The experiment with another crystal; what it had stays as it was."""
    return Experiment(
        identifier=experiment.identifier,
        beam=experiment.beam,
        detector=experiment.detector,
        goniometer=experiment.goniometer,
        scan=experiment.scan,
        crystal=crystal,
        imageset=experiment.imageset,
    )


def lookup_of_noise(experiment: Any, shapes: Sequence[tuple[int, int]]) -> tuple[Floats, ...] | None:
    """Read-out noise in image units, one array (slow, fast) a panel, from the experiment's external lookup, or None.

    dxtbx has no slot for it: the noise of a dark exposure travels in the one for pedestals, and its file says so in
    its name. A pedestal proper is refused, because images are taken as they are stored.
    """
    slot = experiment.imageset.external_lookup.pedestal
    if slot.data.empty() and not slot.filename:
        return None
    if slot.filename and not any(word in Path(slot.filename).name.lower() for word in NAMES_OF_NOISE):
        raise BadInput(
            f"the experiment carries the pedestal {slot.filename}: expected an image without one; subtract it, or if "
            f"it is read-out noise give its file a name with one of {', '.join(NAMES_OF_NOISE)}"
        )
    if slot.data.empty():
        return read_map(slot.filename, shapes)
    tiles = tuple(slot.data.tile(i).data().as_numpy_array() for i in range(slot.data.n_tiles()))
    check_shapes(tiles, shapes, "the experiment's external lookup")
    return tiles
