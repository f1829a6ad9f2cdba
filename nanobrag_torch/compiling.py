"""Functions of tensors compiled ahead of time: one C++ loop on a CPU, kept for the next run.

torch.compile costs every process seconds of imports even when all is cached; a package that was compiled ahead of time
(AOTInductor) is a shared library that loads in milliseconds. It is made once per machine, kept in the user's cache
folder, and made anew when torch, the processor or the sources change. It is kept unpacked: torch unpacks a package file
into a new temporary folder in every process, which stays there when the process is killed or leaves by os._exit.

Compiling takes minutes, so it is asked for: `make compile`, `python -m nanobrag_torch.compiling`, or by the commands
where many stills repay it. Where no package was made, or with NANOBRAGG_DISABLE_COMPILE=1, plain functions are called.
"""

import hashlib
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Sizes with which a function is traced: no two alike, none 0 or 1, which would be taken as constant.
TRACED_SIZES = {"b": 6, "k": 3, "p": 40, "m": 50}

#: What the compiled functions are made of.
SOURCES = (
    "compiling.py",
    "node_slopes.py",
    "panel.py",
    "passes.py",
    "profile.py",
    "rotation.py",
    "spread.py",
    "tensors.py",
)

log = logging.getLogger(__name__)
Shape = tuple[int | str, ...]


class CompilationError(RuntimeError):
    """A function could not be compiled; the message says why."""


class Compiled:
    """A function of tensors that runs compiled where that is possible and pays.

    `shapes` are those of its arguments for each rule that it is compiled for, a size that varies by its name; for other
    rules the plain function is called.
    """

    def __init__(self, function: Callable[..., Tensor], shapes: Mapping[Any, tuple[Shape, ...]]) -> None:
        self.function, self.shapes = function, shapes
        self._loaded: dict[Any, Any] = {}
        self.__doc__ = function.__doc__

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    def __call__(self, *tensors: Tensor, rule: Any) -> Tensor:
        """The function's result: compiled for float64 on a CPU where nothing is differentiated."""
        if rule not in self.shapes or not self._can(tensors):
            return self.function(*tensors, rule=rule)
        if rule not in self._loaded:
            package = self.package(rule)
            if not package.exists():
                return self.function(*tensors, rule=rule)
            self._loaded[rule] = _load(package)
        (found,) = self._loaded[rule].boxed_run([tensor.contiguous() for tensor in tensors])
        return torch.as_tensor(found)

    def _can(self, tensors: tuple[Tensor, ...]) -> bool:
        if torch._C._are_functorch_transforms_active():
            # tensors of torch.func's transformations hold no numbers
            return False
        differentiated = torch.is_grad_enabled()
        for t in tensors:
            if t.dtype != torch.float64 or not t.is_cpu or (differentiated and t.requires_grad):
                return False
        return not disabled()

    def package(self, rule: Any) -> Path:
        """The folder in which the package for a rule is kept, unpacked."""
        return folder() / f"{self.name}_{list(self.shapes).index(rule)}"

    def missing(self) -> list[Any]:
        """The rules that it is not yet compiled for on this machine."""
        return [rule for rule in self.shapes if not self.package(rule).exists()]

    def build(self, rule: Any) -> None:
        """Compile for a rule and keep the package; raises CompilationError."""
        package = self.package(rule)
        log.warning("compiling %s for this machine, once; all of it takes minutes", package.name)
        tensors = tuple(
            torch.ones([size if isinstance(size, int) else TRACED_SIZES[size] for size in shape], dtype=torch.float64)
            for shape in self.shapes[rule]
        )
        try:
            package.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=package.parent) as beside:
                packed = _package(self.function, self.shapes[rule], rule, tensors, Path(beside) / f"{self.name}.pt2")
                shutil.unpack_archive(packed, Path(beside) / package.name, "zip")
                if not package.exists():
                    os.rename(Path(beside) / package.name, package)
        except Exception as error:  # whatever tracing, the compiler or the disk raise: the plain function is there
            raise CompilationError(" ".join(str(error).split())[:500]) from error


def compiled(shapes: Mapping[Any, tuple[Shape, ...]]) -> Callable[[Callable[..., Tensor]], Compiled]:
    """Decorates a function of float64 tensors with these shapes, to be compiled for these rules."""

    def decorate(function: Callable[..., Tensor]) -> Compiled:
        return Compiled(function, shapes)

    return decorate


def disabled() -> bool:
    """Whether the environment asks for plain functions."""
    return os.environ.get("NANOBRAGG_DISABLE_COMPILE", "0") not in ("", "0")


def disable() -> None:
    """Plain functions from here on, in this process and those that it starts."""
    os.environ["NANOBRAGG_DISABLE_COMPILE"] = "1"


@cache
def folder() -> Path:
    """The folder of the packages for these sources, this torch and this processor."""
    parts = [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor_flags()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in SOURCES:
        digest.update((Path(__file__).parent / source).read_bytes())
    return Path.home() / ".cache" / "nanobrag_torch" / digest.hexdigest()[:16]


def _processor_flags() -> str:
    """What the processor can do, as Linux says it: packages are compiled for it and no other."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _load(package: Path) -> Any:
    # What torch._inductor.aoti_load_package wraps, without its second of imports.
    return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)


def _package(
    function: Callable[..., Tensor], shapes: tuple[Shape, ...], rule: Any, tensors: tuple[Tensor, ...], file: Path
) -> str:
    from torch._inductor import aoti_compile_and_package
    from torch.export import Dim, default_decompositions, export

    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return function(*arguments, rule=rule)

    sizes = {name: Dim(name) for name in TRACED_SIZES}
    dynamic = tuple({axis: sizes[size] for axis, size in enumerate(shape) if isinstance(size, str)} for shape in shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own internals
        program = export(Module(), tensors, dynamic_shapes=(dynamic,))
        # products of small matrices, one for each node, are part of a loop over the nodes
        decompositions = default_decompositions()
        decompositions[torch.ops.aten.bmm.default] = lambda a, b: (a[..., None] * b[:, None]).sum(2)
        program = program.run_decompositions(decompositions)
        options = {"cpp.dynamic_threads": True}
        return str(aoti_compile_and_package(program, package_path=str(file), inductor_configs=options))


def missing() -> list[Compiled]:
    """What is not yet compiled for this machine."""
    return [function for function in every() if function.missing()]


def every() -> list[Compiled]:
    """All functions that are compiled."""
    from nanobrag_torch import node_slopes, passes

    found = [value for module in (passes, node_slopes) for value in vars(module).values()]
    return [value for value in found if isinstance(value, Compiled)]


def build_all() -> None:
    """Compile what this machine lacks; raises CompilationError."""
    for function in missing():
        for rule in function.missing():
            function.build(rule)


if __name__ == "__main__":
    # the module that other modules import, not this second copy of it under the name __main__
    from nanobrag_torch import compiling

    compiling.build_all()
