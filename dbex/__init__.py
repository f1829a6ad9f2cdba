"""DBEX refines diffraction stills against their raw pixels."""
