"""The makers of configs under the path that scripts import."""

from dbex.models import create_beam_config, create_crystal_config, create_detector_config

__all__ = ["create_beam_config", "create_crystal_config", "create_detector_config"]
