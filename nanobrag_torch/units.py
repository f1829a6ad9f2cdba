"""Constants of nature and the factors between the units at the interfaces and those inside the formulas."""

import math

#: Square of the classical electron radius, m^2: nanoBragg's value, so that absolute intensities agree.
R_E_SQUARED_M2 = 7.94079248018965e-30

#: Fluence, photons/m^2, at which r_e^2 * fluence is 1: nanoBragg's default.
UNIT_FLUENCE_PER_M2 = 125932015286227086360700780544.0

#: h c in eV * Angstrom.
HC_EV_A = 12398.42

RADIANS_PER_DEGREE = math.pi / 180.0
