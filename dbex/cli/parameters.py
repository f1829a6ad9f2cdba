"""The parameters of the commands as a phil scope, and its command line in the manner of the DIALS programs."""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libtbx.phil
from libtbx.phil import tokenizer

from dbex.errors import BadInput
from dbex.refinement.settings import Settings, check_choice

if TYPE_CHECKING:
    from dbex.data_load import Shared

REFINE_PHIL = """
mask = None
  .type = path
  .help = "Trusted pixels, as dials.generate_mask writes them: a pickled tuple of flex.bool, one a panel, True where"
          "a pixel can be used."
mtz_columns = None
  .type = str
  .help = "The amplitudes and their sigmas, such as F,SIGF. None takes F,SIGF, else the first."
gain = None
  .type = numeric(above=0)
  .help = "Image units per photon. A photon counter needs none; for others dbex.estimate_noise measures it."
sigma_readout = None
  .type = numeric(above=0)
  .help = "Read-out noise of a pixel (rms), in the image's units. A photon counter needs none."
sigma_map = None
  .type = path
  .help = "File with the read-out noise of every pixel, in the image's units; goes before sigma_readout."
noise = None
  .type = path
  .help = "What dbex.estimate_noise wrote (its output.json): gain, pedestal and noise of each panel, instead of gain"
          "and sigma_readout."
trusted_max = None
  .type = numeric(above=0)
  .help = "Pixels above this, in the image's units, are not trusted: where a converter saturates below the trusted"
          "range that the experiment states."
d_min = None
  .type = numeric(above=0)
  .help = "Leave out reflections of a finer resolution, in Å. None finds in the pixels where they end, by their"
          "mean signal over noise."
compile = *auto yes no
  .type = choice
  .help = "Whether the passes over pixels run compiled: yes compiles them first where this machine has not yet (once,"
          "minutes), auto does so when there are so many stills that it repays itself, no runs them plain."
threads = 1
  .type = whole(minimum=1)
  .help = "Threads of one refinement. On a busy machine more than one is slower, not faster."
refine
  .help = "What moves. Several names are joined by commas; none holds everything of a group."
{
  crystal = *orientation *cell *scale *b_factor *size *mosaicity cell_spread
    .type = choice(multi=True)
    .help = "Parameters of the crystal that move: orientation, cell, scale, b_factor, size of the mosaic blocks,"
            "mosaicity, cell_spread (isotropic strain, which one still cannot tell from a bandwidth); or none."
  detector = distance shift tilt point_spread
    .type = choice(multi=True)
    .help = "Parameters of the detector that move: distance, shift, tilt, point_spread; or none."
  beam = wavelength direction bandwidth divergence
    .type = choice(multi=True)
    .help = "Parameters of the beam that move: wavelength, direction, bandwidth, divergence; or none."
  terms = *bandwidth *square *mosaic_tensor *size_tensor *component *divergence *point_spread cell_spread
    .type = choice(multi=True)
    .help = "Terms of the model that are tried and kept where the data pay for them: bandwidth, square (blocks with"
            "flat faces), mosaic_tensor, size_tensor, component (a second orientation), divergence, point_spread, and"
            "cell_spread in the place of bandwidth; or none."
  start = *auto wide near
    .type = choice
    .help = "How far the start may be off: wide begins with a search from the spots' centroids, near refines at once,"
            "auto searches too, which does a good start no harm."
  solver = *levenberg_marquardt lbfgs
    .type = choice
    .help = "levenberg_marquardt takes about ten steps; lbfgs is the slower second opinion."
  max_iterations = 50
    .type = whole(minimum=1)
    .help = "Give up after so many steps of the solver."
  model_error = None
    .type = numeric(minimum=0)
    .help = "Relative error of |F|² beyond the sigmas of the structure factors. None estimates it from the data."
}
input
  .help = "The files, recognised by their extensions when they are given without a key."
{
  experiments = None
    .type = path
    .help = "The stills' models (.expt)."
  reflections = None
    .type = path
    .help = "Their indexed reflections (.refl)."
  structure_factors = None
    .type = path
    .help = "Amplitudes of the structure (.mtz)."
}
output {
  directory = refined
    .type = path
    .help = "Where the results go. An earlier result there is replaced once the new one is complete."
  html = dbex.html
    .type = path
    .help = "The name of the report in that folder, a page for a browser. None writes none."
}
"""

#: Who does the work of many stills.
ENGINE_PHIL = """
nproc = 0
  .type = whole(minimum=0)
  .help = "Processes of this machine; 0 takes as many as it has cores."
executor = *process parsl mpi
  .type = choice
  .help = "Who does the work: processes of this machine, a cluster through Parsl, or the ranks of an MPI job, which"
          "mpiexec or srun starts: mpiexec -n 9 dbex.refine_many ... executor=mpi"
parsl_config = None
  .type = path
  .help = "For executor=parsl: a Python file that defines config, a parsl.Config; or slurm, pbs, lsf,"
          "kubernetes or local: those that dbex brings, to be copied and edited."
"""

#: What dbex.refine_joint has besides, or otherwise.
JOINT_PHIL = """
nproc = 1
  .type = whole(minimum=0)
  .help = "Processes that visit stills side by side; 0 takes as many as the machine has cores."
refine {
  detector = *distance *shift *tilt
    .type = choice(multi=True)
    .help = "Parameters of the detector that all stills share: distance, shift, tilt; or none."
  detector_unit = *detector group panel
    .type = choice
    .help = "What moves by itself: the detector as a whole, or after it each group of panels or each panel, along its"
            "own axes and about its own middle; tilt is three rotations then."
  detector_level = 1
    .type = whole(minimum=1)
    .help = "For refine.detector_unit=group: the level of the detector's hierarchy, 1 for what stands right below the"
            "root."
  unit_shift = 0.5
    .type = numeric(above=0)
    .help = "How far a group or panel may be from where the detector as a whole has it: standard deviation, mm."
  unit_tilt = 10
    .type = numeric(above=0)
    .help = "And how far it may be turned, mrad."
  beam = wavelength direction bandwidth
    .type = choice(multi=True)
    .help = "Parameters of the beam that all stills share: wavelength (one factor), direction, bandwidth; or none."
  shot_beam = wavelength direction bandwidth divergence
    .type = choice(multi=True)
    .help = "Parameters of the beam that move from shot to shot: wavelength, direction, bandwidth, divergence; or none."
  wavelength_spread = 0.002
    .type = numeric(above=0)
    .help = "How far wavelengths that move from shot to shot may be from those of the experiments: the relative"
            "standard deviation of their prior. It alone holds the common scale of wavelengths and cell."
  structure_factors = *known apart merged
    .type = choice
    .help = "|F|² of the reflections: known from the file, each still's intensities about them with their error; or"
            "refined at the end for all stills together, Friedel mates apart or merged."
  structure_factor_prior = *mtz none
    .type = choice
    .help = "Refined |F|² have those of the file as prior, with its error; or none, which takes stills that share most"
            "of their reflections."
  cell = *shared still
    .type = choice
    .help = "One cell for all stills, or one of its own for each still."
  terms = bandwidth square mosaic_tensor size_tensor component divergence point_spread cell_spread
    .type = choice(multi=True)
    .help = "Terms of the model that are tried on each still by itself and kept where its data pay for them; or none."
}
output {
  directory = joint
    .type = path
    .help = "Where the results go. An earlier result there is replaced once the new one is complete. For a sweep it is"
            "joint in the sweep's folder, where nothing else is said."
}
"""

#: What only many stills tell.
JOINT_ONLY = ("detector_unit", "structure_factors")

REPORT_PHIL = """
still = None
  .type = optional_whole(minimum=0)
  .help = "For the run of a dbex.refine_many: the number, in stills.csv, of the still that gets a page of its own."
output {
  html = dbex.html
    .type = path
    .help = "The name of each page."
}
"""

LOOK_PHIL = """
port = 0
  .type = whole(minimum=0)
  .help = "Where the page is served, on this machine alone; 0 takes any port that is free."
output {
  directory = None
    .type = path
    .help = "Write pictures (PNG) there instead of serving a page."
}
"""

FILES = {".expt": "input.experiments", ".refl": "input.reflections", ".mtz": "input.structure_factors"}
#: How stills are read beside: parameters of the same names.
READING = ("mask", "mtz_columns", "gain", "sigma_readout", "sigma_map", "trusted_max", "noise")


class NumericConverter(libtbx.phil.float_converters):
    """A finite number, `above` a limit or from a `minimum` on, or None where it is optional."""

    phil_type = "numeric"
    parse: Callable[[str], float] = float
    optional = True
    noun = "a number"

    def __init__(self, above: float | None = None, minimum: float | None = None) -> None:
        super().__init__()
        self.above, self.minimum = above, minimum

    def from_words(self, words: list[Any], master: Any) -> float | None:
        """The number that the words say; raises BadInput."""
        text = " ".join(word.value for word in words).strip()
        if text.lower() == "none" and self.optional:
            return None
        try:
            value = self.parse(text)
        except ValueError:
            value = math.nan
        if self.above is not None and not value > self.above:
            value = math.nan
        if self.minimum is not None and not value >= self.minimum:
            value = math.nan
        if not math.isfinite(value):
            raise BadInput(f"{master.full_path()} is {text!r}: expected {self.expected()}")
        return value

    def expected(self) -> str:
        """What the parameter accepts, in words."""
        if self.above is not None:
            return f"{self.noun} above {self.above:g}"
        return self.noun if self.minimum is None else f"{self.noun} of at least {self.minimum:g}"


class WholeConverter(NumericConverter):
    """A whole number from a `minimum` on."""

    phil_type = "whole"
    parse = int
    optional = False
    noun = "a whole number"

    def _value_as_str(self, value: int) -> str:
        return str(value)


class OptionalWholeConverter(WholeConverter):
    """The same, or None."""

    phil_type = "optional_whole"
    optional = True


class ChoiceConverter(libtbx.phil.choice_converters):
    """A phil choice that also takes `a,b`, `a+b` and `none`, and names the nearest choice for a wrong one."""

    def fetch(self, source_words: list[Any], master: Any, ignore_errors: bool = False) -> Any:
        """The definition `master` with the choices that the words name; raises BadInput."""
        options = tuple(word.value.lstrip("*") for word in master.words)
        values = [word.value for word in source_words]
        marked = any(value.startswith("*") for value in values) or tuple(values) == options
        names = values if marked else [name for name in re.split(r"[,+\s]+", " ".join(values)) if name]
        for name in names:
            if name.lower() != "none" or len(names) > 1:
                check_choice(master.full_path(), name.lstrip("*").lower(), options)
        chosen = [name.lstrip("*").lower() for name in names if not marked or name.startswith("*")]
        if not self.multi and (len(chosen) != 1 or chosen[0] not in options):
            raise BadInput(f"{master.full_path()} is {' '.join(values)!r}: expected one of {', '.join(options)}")
        words = [tokenizer.word(value="*" + name if name in chosen else name) for name in options]
        return master.customized_copy(words=words)


def scope_of(phil: str) -> Any:
    """A phil scope with our converters."""
    converters = [NumericConverter, WholeConverter, OptionalWholeConverter, ChoiceConverter]
    return libtbx.phil.parse(phil, converter_registry=libtbx.phil.extended_converter_registry(converters))


def refine_scope(more: str = "") -> Any:
    """The phil scope of dbex.refine with its defaults, and what another command asks beside."""
    return scope_of(more + REFINE_PHIL)


def joint_scope() -> Any:
    """The phil scope of dbex.refine_joint with its defaults."""
    scope = refine_scope(ENGINE_PHIL)
    scope.adopt_scope(scope_of(JOINT_PHIL))
    return scope


def report_scope() -> Any:
    """The phil scope of dbex.report with its defaults."""
    return scope_of(REPORT_PHIL)


def look_scope() -> Any:
    """The phil scope of dbex.look with its defaults."""
    return scope_of(LOOK_PHIL)


def folder_and_others(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The one argument that is the folder of a run, and all others; raises BadInput."""
    named = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    named = [argument for argument in named if Path(argument).suffix != ".phil"]
    if len(named) != 1:
        raise BadInput(f"{len(named)} folders are given: expected one, the output.directory of a run")
    if not Path(named[0]).is_dir():
        raise BadInput(f"{named[0]} is no folder: expected the output.directory of a run")
    return Path(named[0]), [argument for argument in arguments if argument != named[0]]


def interpret(arguments: Sequence[str], scope: Any = None, command: str = "dbex.refine") -> tuple[Any, str]:
    """The parameters of a command (dbex.refine, or that of `scope`) that the arguments ask for, and the modified ones
    as phil text; raises BadInput."""
    parameters, modified = fetched(refine_scope() if scope is None else scope, arguments)
    require_files(parameters, command)
    return parameters, modified


def fetched(scope: Any, arguments: Sequence[str]) -> tuple[Any, str]:
    """The parameters of a scope that the arguments ask for, and the modified ones as phil text.

    Arguments are files, recognised by extension (.phil holds parameters), and key=value, where a key may leave out
    its leading scopes. Raises BadInput.
    """
    definitions = {definition.path: definition.object for definition in scope.all_definitions()}
    sources: list[Any] = []
    given: dict[str, str] = {}
    for argument in arguments:
        if Path(argument).suffix == ".phil":
            sources.append(parse_phil_file(argument, definitions))
            continue
        path, value = split_argument(argument, definitions)
        if path in given:
            raise BadInput(f"{path} is given twice, as {given[path]} and as {value}: expected one")
        given[path] = value
        quoted = value if value == "None" else tokenizer.quote_python_str('"', value)
        sources.append(libtbx.phil.parse(f"{path} = {quoted}"))
    parameters = scope.fetch(sources=sources).extract()
    return parameters, scope.fetch_diff(source=scope.format(parameters)).as_str().strip()


def split_argument(argument: str, definitions: dict[str, Any]) -> tuple[str, str]:
    """The full path of a parameter and the text of its value, from a file name or key=value; raises BadInput."""
    extension = Path(argument).suffix
    key, equals, value = argument.partition("=")
    if extension in FILES and (not equals or Path(argument).exists()):
        if FILES[extension] not in definitions:
            raise BadInput(f"{argument}: expected no {extension} file; leave it out")
        return FILES[extension], argument
    if equals and not value.strip():
        raise BadInput(f"{argument} has no value: expected {key}=value")
    if equals:
        return resolve_key(key.strip(), definitions), value.strip()
    if argument.startswith("-"):
        raise BadInput(f"unknown option {argument}: expected key=value, -c, -a, -h or --version")
    hint = f": give it as mask={argument}" if extension in (".pickle", ".pkl", ".mask") else ""
    raise BadInput(f"{argument} is no .expt, .refl, .mtz or .phil file and no key=value{hint}")


def resolve_key(key: str, definitions: dict[str, Any]) -> str:
    """The full path of a key, which may leave out leading scopes; an unknown one raises BadInput with the nearest."""
    matches = [path for path in definitions if path == key or path.endswith(f".{key}")]
    if not matches and key.rpartition(".")[2] in JOINT_ONLY:
        raise BadInput(f"parameter {key} is one of dbex.refine_joint: one still does not tell it; leave it out")
    if key in matches or len(matches) == 1:
        return key if key in matches else matches[0]
    if matches:
        raise BadInput(f"parameter {key} is ambiguous: expected one of {', '.join(matches)}")
    spellings = {path: path for path in definitions} | {path.rpartition(".")[2]: path for path in definitions}
    near = difflib.get_close_matches(key, spellings, n=1, cutoff=0.0)[0]
    raise BadInput(f"unknown parameter {key}: did you mean {spellings[near]}?")


def parse_phil_file(name: str, definitions: dict[str, Any]) -> Any:
    """The phil scope of a parameter file, every key of which must be known; raises BadInput or OSError."""
    text = Path(name).read_text(encoding="utf-8")
    try:
        source = libtbx.phil.parse(text, source_info=name)
    except RuntimeError as error:
        raise BadInput(f"{name} is no phil file: {' '.join(str(error).split())}") from error
    for definition in source.all_definitions():
        if definition.path not in definitions:
            resolve_key(definition.path, definitions)
            raise BadInput(f"{name} sets {definition.path}: expected the whole path of a parameter")
    return source


def require_files(parameters: Any, command: str = "dbex.refine") -> None:
    """Raise BadInput unless all three input files are named, every named file exists, and the output has a name."""
    if parameters.output.directory is None:
        raise BadInput("output.directory is None: expected the name of a folder")
    page = parameters.output.html
    if page is not None and (Path(page).name != page or Path(page).suffix != ".html"):
        raise BadInput(
            f"output.html={page}: expected a name that ends in .html, of a file in output.directory, or None"
        )
    usage = f"{command} still.expt still.refl structure.mtz mask=mask.pkl [key=value …]"
    for extension, path in FILES.items():
        if getattr(parameters.input, path.partition(".")[2]) is None:
            raise BadInput(f"no {extension} file is given: expected {usage}")
    files = parameters.input
    optional = filter(None, (parameters.mask, parameters.sigma_map, parameters.noise))
    for name in (files.experiments, files.reflections, files.structure_factors, *optional):
        if not Path(name).is_file():
            raise BadInput(f"{name}: {'is a directory, not a file' if Path(name).is_dir() else 'no such file'}")


def absolute(name: str) -> str:
    """The whole name of a file: workers may stand elsewhere."""
    return str(Path(name).resolve())


def shared_of(parameters: Any) -> "Shared":
    """What all stills of a run share, the names of files made absolute."""
    from dbex.data_load import Shared

    reading: dict[str, Any] = {name: getattr(parameters, name) for name in READING}
    reading |= {name: absolute(reading[name]) for name in ("mask", "sigma_map", "noise") if reading[name]}
    return Shared(absolute(parameters.input.structure_factors), **reading)


def settings_of(parameters: Any, more_beam: Sequence[str] = ()) -> Settings:
    """The settings of a refinement, with further groups of the beam; raises BadInput."""
    refine = parameters.refine
    return Settings(
        crystal=tuple(refine.crystal),
        detector=tuple(refine.detector),
        beam=(*refine.beam, *more_beam),
        d_min=parameters.d_min,
        max_iterations=refine.max_iterations,
        model_error=refine.model_error,
        start=refine.start,
        terms=tuple(refine.terms),
        solver=refine.solver,
    )
