"""The stills of many files, in their order, each with a hash of all that its result depends on but the parameters."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dbex.batch.ledger import Task
from dbex.data_load import by_image
from dbex.errors import BadInput
from dbex.io.experiments import read_experiments
from dbex.io.images import image_path
from dbex.io.record import sha256
from dbex.io.reflections import read_table, spots_by_experiment

Pair = tuple[str, str]


def pairs_of(experiments: Sequence[str], reflections: Sequence[str]) -> list[Pair]:
    """Each .expt with its .refl, absolute, in the order of the .expt: by their names where these match, as
    a_indexed.expt and a_indexed.refl do, else by their order, as DIALS has it. Raises BadInput."""
    absolute = [[str(Path(name).resolve()) for name in names] for names in (experiments, reflections)]
    for names in absolute:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise BadInput(f"{twice[0]} is given twice: expected every file once")
    if len(absolute[0]) != len(absolute[1]):
        raise BadInput(
            f"{len(absolute[0])} .expt and {len(absolute[1])} .refl files are given: expected one .refl for every .expt"
        )
    by_stem = {str(Path(name).with_suffix("")): name for name in absolute[1]}
    stems = [str(Path(name).with_suffix("")) for name in absolute[0]]
    if all(stem in by_stem for stem in stems):
        return [(name, by_stem[stem]) for name, stem in zip(absolute[0], stems, strict=True)]
    return list(zip(*absolute, strict=True))


def tasks_of(pairs: Sequence[Pair]) -> Iterator[Task]:
    """The tasks of pairs of files, one an image. Files that cannot be read are one task without an experiment, which a
    worker will find out too."""
    number = 0
    for experiments_file, reflections_file in pairs:
        files = [experiments_file, reflections_file]
        content = [sha256(file) or "absent" for file in files]
        images: list[tuple[tuple[int, ...], int, str]]
        try:
            experiments = read_experiments(experiments_file)
            spots = spots_by_experiment(read_table(reflections_file), experiments)
            together = dict.fromkeys(by_image(experiments))
            images = [(ids, sum(spots[index] for index in ids), seen(experiments[ids[0]])) for ids in together]
        except BadInput:
            images = [((), 0, "")]
        for ids, count, image in images:
            key = hashlib.sha256("\n".join((*files, *content, str(ids), image)).encode()).hexdigest()
            numbers = tuple(number + index for index in ids or (0,))
            yield Task(key, numbers, experiments_file, reflections_file, ids, count)
        number += sum(len(ids) or 1 for ids, _, _ in images)


def seen(experiment: Any) -> str:
    """Which image an experiment has, by name, size and time: its bytes are too many to be read twice."""
    if experiment.imageset is None:
        return "none"
    path = image_path(experiment)
    if not path.is_file():
        return f"{path} absent"
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"
