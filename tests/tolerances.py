"""The tolerances of the tests, each a named constant with the reason for its size.

Append where your subject stands; a tolerance is never loosened to make a test pass: find out why the number is off.
"""

#: Å, mm and degrees that went through a DIALS file: it keeps all digits, what is lost is in recomputing A = U B.
ROUND_TRIP_ABSOLUTE = 1e-9

#: Seconds until `dbex.refine -h` has ended: what a person takes for "at once" on a machine busy with other things.
HELP_SECONDS = 3.0

#: Block size and mosaicity from the widths of spots: a start. The radius of a ring is not quite along q (sin θ), and
#: the ring's variance has part of the size's: a few percent at the edge of the detector.
SPOT_WIDTH_RELATIVE = 0.1
