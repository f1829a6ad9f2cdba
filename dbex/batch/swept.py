"""The stills that a sweep has refined, with the crystals that it found, for whoever goes on from there."""

import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dbex.batch.ledger import FILE, Ledger, State
from dbex.batch.sweep import FILES, result_file
from dbex.data_load import Shared, StillFiles, Stills
from dbex.errors import BadInput
from dbex.io.record import sha256
from dbex.io.spool import read_result
from dbex.still import Amplitudes, Still
from nanobrag_torch.config import BeamConfig, DetectorConfig


@dataclass(frozen=True)
class Swept:
    """A still of a sweep: its number there, its files and place in them, and where its result lies."""

    number: int
    experiments: str
    reflections: str
    experiment_id: int
    result: str
    lattice: int


@dataclass(frozen=True)
class SweptStills:
    """The refined stills of a sweep as a list in a file, which every process opens for itself, and what they share."""

    listed: Path
    shared: Shared

    def __len__(self) -> int:
        return len(entries(self.listed))

    def read(self, index: int) -> Still:
        """A still as it was read for the sweep, but for its crystal, which is the refined one; its `index` is its
        number there. Raises BadInput."""
        entry, stills = self._opened(index)
        refined = read_result(Path(entry.result), entry.lattice).experiment.crystal
        still = stills.read(entry.experiment_id, crystal=refined)
        return replace(still, index=entry.number)

    @property
    def amplitudes(self) -> Amplitudes:
        """The structure factors of all stills. Raises BadInput."""
        return self._opened(0)[1].amplitudes

    def bench(self, index: int) -> tuple[tuple[DetectorConfig, ...], BeamConfig]:
        """Detector and beam of a still as they were read. Raises BadInput."""
        entry, stills = self._opened(index)
        return stills.bench(entry.experiment_id)

    def panel_groups(self, index: int, level: int) -> list[tuple[str, tuple[int, ...]]]:
        """The groups of panels at a level of the hierarchy of a still's detector, by name."""
        entry, stills = self._opened(index)
        return stills.panel_groups(entry.experiment_id, level)

    def _opened(self, index: int) -> tuple[Swept, Stills]:
        entry = entries(self.listed)[index]
        return entry, StillFiles(entry.experiments, entry.reflections, self.shared).stills()


@lru_cache(maxsize=1)
def entries(listed: Path) -> list[Swept]:
    """The stills of a list, read once a process."""
    with listed.open(encoding="utf-8") as lines:
        return [Swept(*json.loads(line)) for line in lines]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / FILE).is_file()


def swept_stills(folder: Path, listed: Path) -> tuple[SweptStills, dict[str, int]]:
    """The stills that the sweep in `folder` has refined, listed in a new file, and how many ended how.

    Raises BadInput where nothing is refined, or the files that all share are no longer those of the sweep.
    """
    with closing(Ledger(folder)) as ledger:
        shared, asked = ledger.fact("shared"), ledger.fact("asked")
        states: Counter[str] = Counter()
        with listed.open("w", encoding="utf-8") as stream:
            for entry in ledger.entries():
                states[entry.outcome.state.value] += 1
                if entry.outcome.state == State.REFINED:
                    task = ledger.task(entry.key)
                    result = str(result_file(folder, entry.key).absolute())
                    still = (
                        entry.number,
                        task.experiments,
                        task.reflections,
                        entry.experiment_id,
                        result,
                        entry.lattice,
                    )
                    stream.write(json.dumps(still) + "\n")
    if shared is None or not states[State.REFINED.value]:
        raise BadInput(f"the sweep in {folder} has refined no still yet: expected some; let dbex.refine_many end first")
    for name in FILES:
        if shared[name] and sha256(shared[name]) != asked[name]:
            raise BadInput(f"{shared[name]} is not what the sweep in {folder} was done with: expected the same file")
    return SweptStills(listed, Shared(**shared)), dict(states)
