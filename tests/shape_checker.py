"""The run-time checker of types and shapes that tests/conftest.py hangs into both packages."""

from beartype import BeartypeConf, beartype

#: An int is accepted where a float is annotated (PEP 484), as type checkers do.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
