"""The tolerances of the tests, each a named constant with the reason for its size.

Append where your subject stands; a tolerance is never loosened to make a test pass: find out why the number is off.
"""

#: Å, mm and degrees that went through a DIALS file: it keeps all digits, what is lost is in recomputing A = U B.
ROUND_TRIP_ABSOLUTE = 1e-9

#: Seconds until `dbex.refine -h` has ended: what a person takes for "at once" on a machine busy with other things.
HELP_SECONDS = 3.0
