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

#: A = U B in 1/Å against dxtbx's, from the same U and cell: rounding of double precision only.
A_MATRIX_ABSOLUTE = 1e-12
#: Pixel positions in mm against dxtbx's: a nanometre, a thousand roundings of 300 mm.
PIXEL_POSITION_MM = 1e-9
#: Numbers set into dxtbx's models and read back (mm, Å, degrees, 1/Å): recomputed through A and panel frames.
MODEL_ROUND_TRIP = 1e-10

#: Mean of Z² over 107 spots: its rms is √(2/107) = 0.14, four times that.
SPOT_Z_FOUR_SIGMA = 0.55

#: |found - true| / esd of three numbers of one plane: beyond 3.5 once in 700 runs of three, and the seed is fixed.
PLANE_ESDS = 3.5
#: Part of |error|/esd below 1, about 0.6827: three standard errors of 3,000 repeats, and the skewness of Poisson noise.
COVERAGE_68 = 0.03

#: Photons from ADU against photons: multiplied by the gain and divided by it again.
UNITS_RELATIVE = 1e-12

# --- noise from the background -------------------------------------------------------------------------------------

#: Mean of a gain over its truth where clipping and whole numbers could bias it: what is asked for. Four standard
#: errors of the mean of 120 repeats with esds of 1 % are 0.4 %.
GAIN_BIAS = 0.02
#: rms of (found − true)/esd over 120 repeats: its esd is √(1/240) = 0.065, four times that.
PULL_RMS = 0.26
#: Its mean: four times √(1/120).
PULL_MEAN = 0.37
#: Gain of a photon counter, 1, from its background.
COUNTER_GAIN = 0.02
#: σ-Z of background pixels of a real still: what is asked for.
SIGMA_Z = 0.03
#: rms of 16 pulls of esds that hold: 1 within 0.18; σ² bounded by τ² ≥ 0 leans to one side by half an esd.
PEAKS_PULL_RMS = 1.6
#: Mean Z² of background pixels of a panel whose light is uneven: chance of 40,000 pixels is 0.008.
UNEVEN_Z2 = 0.02
#: A number against its esd, one case with a fixed seed.
NOISE_ESDS = 4.0

# --- nanobrag_torch: the sampled sum -------------------------------------------------------------------------------

#: Pixels that a golden case does not judge, relative to its maximum: they are below 1e-8 of it, so that agreement in
#: seven digits means less than this.
GOLDEN_FAINT = 1e-14

#: A golden case states the largest error of a quirk with three digits.
GOLDEN_QUIRK_ROUNDING = 5e-3

#: Matrices of seeded domains: a sum of two products of numbers up to 1, in another order.
SEEDED_MATRIX = 3e-16

#: A few operations in double precision on numbers near 1, or the same relative to the larger of two numbers.
ROUNDING = 1e-14
#: Smooth functions integrated by the midpoint rule with at least 1e5 points, or by a rule that is exact.
QUADRATURE = 1e-5
#: The intensity of a sphere, integrated to 100 nodes in 4e5 steps; the cosine beyond is replaced by its mean.
SPHERE_INTEGRAL = 1e-5
#: Volume of an ellipsoid from the voxels whose centres it holds, some 60 across.
VOXEL_VOLUME = 2e-3
#: rms over 4,000 domains about one axis: kurtosis 2.01, so √((2.01 - 1)/4/4000) = 0.8 %, four times that.
RMS_OF_4000_DOMAINS = 0.032
#: Matrices of domains whose angles (below 0.01) were rounded to float32, twice.
FLOAT32_ANGLE = 1e-9
#: sin x = x (1 - x²/6) for angles of a few milliradians.
SMALL_ANGLE_SQUARED = 1e-5
#: The exact line integral against adaptive quadrature: what docs/physics.md claims.
LINE_INTEGRAL = 1e-9

#: An image in units of its mean after rotating, inverting or cutting: positions of 60 mm and phases of 100 radians
#: are rounded anew.
ROTATED_LABORATORY = 1e-10
#: The same terms added in another order.
REORDERED_SUM = 1e-12
#: float32 results, geometry in double, where they exceed a thousandth of the image's maximum: beside a maximum of the
#: lattice factor the phase πNh, up to 60, has few digits of its small sine. 1.3e-5 is the worst of the golden images.
FLOAT32_IMAGE = 2e-5
#: A beam of relative width 1e-9 and 1e-9 rad: the change of the image is of second order or below its curvature.
NARROW_BEAM = 1e-8
#: Derivatives against Richardson-extrapolated central differences: what DB-AT-010 asks of every number.
DERIVATIVE_RELATIVE = 1e-6

# --- derivatives ---------------------------------------------------------------------------------------------------

#: A derivative against Richardson-extrapolated differences of float64: issue 3's bound. What is left of their own error
#: is of fourth order in a step of a fiftieth of a spot's width, about 1e-9, and rounding over the step, about 1e-10.
EXTRAPOLATED_DIFFERENCE_RELATIVE = 1e-6
#: Photons that eight layers of a 0.45 mm sensor put beside those of 64, in part of all: half a layer of parallax.
EIGHT_LAYERS = 0.05
#: A spot in float32 against float64, relative to its peak: q is a difference of numbers near 1/λ, each rounded to
#: 6e-8/λ, which is some 3e-5 of the width of a spot of 600 Å; measured 2.7e-5 over 25 stills.
FLOAT32_PROFILE_RELATIVE = 1e-4
#: Its derivatives, over a width of the spot, relative to the spot's sum: the same; measured 3.0e-5.
FLOAT32_DERIVATIVE_RELATIVE = 1e-4
#: The closed-form Jacobian against autograd through the same functions: two orders of the same sums of some 5,000
#: pixels in double precision.
CLOSED_FORM_JACOBIAN_RELATIVE = 1e-9
#: The same chain of a few hundred operations differentiated forward, by formulas and backward: rounding only.
FORWARD_RELATIVE = 1e-12
#: The refinement's model at zero step against the forward model: DB-AT-027's bound.
ZERO_STEP_RELATIVE = 1e-10
#: Nodes that are farther than eight widths from the Ewald sphere, or nearest to no pixel in or near a box, left out:
#: e^-32 of a peak, or the tail of a spot half a node away.
CANDIDATE_NODES_RELATIVE = 1e-12

# --- nanobrag_torch: the closed form -------------------------------------------------------------------------------

#: A pixel's footprint by its derivative, against 40³ points: (1/40)² of the variance is within the points' cells, and
#: the directions curve by (0.2 mm/100 mm)².
FOOTPRINT_RELATIVE = 1e-3
#: Two ways to compute one image of the closed form, relative: exponents of some tens, of differences of numbers near
#: 1/λ over widths of a thousandth of that.
INVARIANCE = 1e-10
#: The closed form takes S as constant over a spot and the sphere as flat: the first order in the node's width over |q|
#: is odd, the second 1e-5; measured 1.2e-4 for a block, 3e-4 with a wide beam sampled at 36 points a pixel.
NODE_WIDTH_RELATIVE = 1e-3
#: 512 domains that fill a normal distribution evenly: their own noise; measured 2.0e-3, and 1.5e-3 for 2,048.
DOMAINS_RELATIVE = 4e-3
#: A rotation by 0.3 degrees along a straight line against 60 steps: measured 3e-4.
ROTATION_RELATIVE = 1e-3
#: One layer with the variance of its depth leaves out the skewness of that depth: measured 1.2e-3.
ONE_LAYER_RELATIVE = 3e-3
#: Centroid on a flat sphere, in widths of the spot: measured 1.0e-4.
CENTROID_WIDTHS = 3e-4
#: Partiality on a flat sphere: its curvature lowers a node of width 1e-3/Å by 1e-3 of a width, times k; measured
#: 1.1e-3.
PARTIALITY_RELATIVE = 2e-3
#: The obliquity of a ray at the surface and at the depth of absorption, some 0.2 mm farther on: measured 3e-4 of a
#: pixel of 0.1 mm.
PARALLAX_PX = 1e-3
#: Two sub-pixels along an edge of 0.1 mm for a spot of half that rms: measured 3.6e-4 (one: 6.9e-3).
TWO_SUB_PIXELS_RELATIVE = 1e-3

# --- dbex.refinement -----------------------------------------------------------------------------------------------

#: A minimum that was reached by steps below 1e-6 esds: a later step is the square of that or a damping of 1e-4 smaller.
SOLVER_ABSOLUTE = 1e-6
#: The mean of ten estimates of the model's error: four of its own standard errors, and that the mean F² of a shell is
#: known from 20 of 400 reflections, whose logarithm is on average 1/40 too small.
MODEL_ERROR_SIGMAS, MODEL_ERROR_SHELLS = 4.0, 0.03
#: A normal likelihood of squares of numbers that vary as much as they are large: they are skewed, it is not.
MODEL_ERROR_SKEWED = 0.12
#: Median distance of the shipped still's observed centroids from the model's after the search: centroids of DIALS err
#: by about 0.08 px.
SEARCH_MEDIAN_PX = 0.1
#: A prediction against dxtbx: its parallax takes the mean depth over all photons, ours over those that are absorbed
#: (98 % in 1 mm of silicon): measured 0.008 px at the edge, 4e-12 for a sensor without parallax.
DXTBX_PARALLAX_PX = 0.015
#: Turning a node onto the sphere against moving it along the normal of its covariance: first order in the angle, and
#: that parallax: measured 0.010 px.
NEAREST_POINT_PX = 0.02
#: Angle to the Ewald sphere to first order in it, against DIALS' exact one, relative to the largest: measured 3e-4.
DELPSI_RELATIVE = 1e-3
#: Sparse elimination against dense least squares of some hundred pixels: conditions of 1e4 in double precision.
DENSE_RELATIVE = 1e-8
#: Part of |error|/esd below 1 over 50 repeats of 14 parameters: issue 3's bound.
COVERAGE_68_OF_50 = 0.08
#: Two ways to one minimum, in esds: issue 3's bound. The solver ends at steps of 0.02.
SAME_MINIMUM_ESDS = 0.1
#: The scale of a drawn still: DB-AT-029's bound, 1.4 of its esds.
SCALE_RELATIVE = 0.01
#: A still in ADU against the same in photons, refined: DB-AT-023's bound, relative or in esds of what is near 0.
GAIN_RELATIVE = 1e-6
#: |found - true| / esd of 14 numbers of two shots drawn by another program: beyond 4 once in 500 runs.
TRUTH_ESDS = 4.0
#: The ratio of two scales, each known to 1 % by its esd.
TRUTH_SCALE_RELATIVE = 0.03

#: Numbers of two lattices on one image against the truth, in esds: 26 of them, and the seeds are fixed.
LATTICE_ESDS = 3.0
#: Mean square of fourteen pulls that correlate as if they were seven: one and two of its standard deviations.
LATTICE_PULL_SQUARED = 2.0
#: The same image with its lattices in the other order, in esds: turns end where none moves by a tenth.
OTHER_ORDER_ESDS = 0.2
#: The light of a lattice, drawn with two sub-pixels along an edge and not three, and not beyond five widths: measured
#: 3e-4 of the highest pixel.
LIGHT_OF_PEAK = 1e-3
#: A pixel that is taken whole, against 36 samples, over the first term of a series in the width of a pixel over that of
#: the spot: the next term is of second order, and a peak between pixels is sampled lower. Measured 0.2 to 1.8 on spots
#: of 0.4 to 7 pixels; with their widths along the axes for those of their sections 600.
WHOLE_PIXEL_OF_CLAIM = 2.0

# --- compiled functions --------------------------------------------------------------------------------------------

#: Compiled passes against plain ones, relative to the largest number of the box: the same operations in another order,
#: with another exponential, on exponents of some tens that are differences of numbers near 1/λ over widths of 1e-3/Å.
COMPILED_RELATIVE = 1e-9

#: One number of a linear least-squares problem of seven columns whose scales span 1e6, by two ways of elimination.
EXACT_ALGEBRA = 1e-7
#: Mean square of 300 normal deviates: its rms is √(2/300) = 0.082; four times that, for some tens of reflections.
PULL_SQUARED_FOUR_SIGMA = 0.33

#: The mixture of Gaussians against sinc², smeared by 0.15 as no still falls short of, in parts of the peak: what the
#: least-squares fit leaves. One Gaussian for the central lobe leaves 0.05, no fringes 0.03 beside it.
SINC_SQUARED_OF_PEAK, SINC_SQUARED_BESIDE = 0.016, 0.008

#: A worker of a sweep over stills of one megapixel: torch, DIALS and the amplitudes are half of it.
WORKER_MEMORY_MB = 1000.0

# --- all stills jointly --------------------------------------------------------------------------------------------

#: The joint step against the dense system's, in esds: what is asked for. Rounding of systems of condition 1e6 is 1e-10.
DENSE_ESDS = 1e-8
#: A still shows a reflection on the Ewald sphere about every 3 % of spacing at 1.6 Å, weak ones among them.
RESOLUTION_RELATIVE = 0.04
#: A still cut into 256 panels loses its spots on the cuts, a third of them: √(esd_cut² - esd²) is then 0.7 esds of the
#: whole one; three of these.
CUT_ESDS = 2.1
#: What the process that sums holds of a still between visits: some numbers and its name.
HELD_BYTES = 2_000
#: A merit that is quadratic in |F|²: differences of sums of 1e4 squares.
QUADRATIC_RELATIVE = 1e-5
#: The scatter told by some thousand pairs.
SPREAD_RELATIVE = 0.06
#: The part of |F|² within one esd of the truth, of some hundred.
COVERED = (0.58, 0.78)
#: Slope of ln photons along a direction that leaves every pixel as it is: rounding of slopes of about ten.
SCALED_TOGETHER = 1e-9
#: Rigid motions there and back: rounding of lengths of some 100 mm, and of rotations taken apart.
MOTION_MM = 1e-9
#: Derivatives of pixels by motions of panels against central differences, relative to the largest: measured 2e-6.
UNIT_SLOPE_RELATIVE = 1e-4
#: The mean rotation of a detector that was turned by a milliradian or two: linear, so to a part of its square.
MEAN_ROTATION_RELATIVE = 5e-3
#: The sum of 400 means over that of the true values: four standard errors of sums with 5 % of noise a mean.
MERGED_BIAS = 0.01

# --- tracing -------------------------------------------------------------------------------------------------------

#: A traced pixel against the models' image: the same operations on one pixel as on many, summed in another order.
TRACED_RELATIVE = 1e-12

# --- acceptance ----------------------------------------------------------------------------------------------------

#: Median correlation of the spots of golden images: what is asked for; measured 1 - 1e-15.
GOLDEN_ROI_CC = 0.9999
#: A correlation, a mean or a variance of 60,000 independent draws with fixed seeds, in its own standard errors.
UNCORRELATED_SIGMAS = 4.0
#: d of a reflection and of its equivalent: a few operations in double precision.
SAME_RESOLUTION = 1e-12
#: An amplitude that went through an MTZ file, which keeps single precision.
MTZ_RELATIVE = 1e-6
#: Parts of some 500 drawn intensities within one and two esds: three standard errors of their counts.
COVERAGE_68_OF_INTENSITIES, COVERAGE_95_OF_INTENSITIES = 0.06, 0.03
#: Shared numbers of a fixed seed against the truth: what is asked for.
TRUTH_OF_SHARED_ESDS = 3.0
#: Part of some 200 merged means within one esd: three standard errors of the count; and within three, all but those of
#: tails that means of one or two observations have.
COVERAGE_68_OF_MEANS, WITHIN_THREE_ESDS = 0.1, 0.98
#: A still with a spoilt spot or pixel against the untouched one, in esds, where its fit is called good.
SAME_NUMBER_ESDS = 4.0
#: Parts of each parameter's errors within one and two esds: what is asked for.
COVERAGE_68_OF_MANY, COVERAGE_95_OF_MANY = 0.05, 0.03

# --- pictures ------------------------------------------------------------------------------------------------------

#: Pictures are compared as the means of blocks of so many pixels, as an eye that stands back does: letters of another
#: version of the font or of FreeType move by a pixel and keep their blocks.
PICTURE_BLOCK = 16
#: The rms difference of blocks, of the whole range of a colour. Another font (DejaVu Serif for Sans) makes 0.011, a
#: wrong sign of Z, a wrong variance or a shifted model 0.11 and more in the histogram, 0.03 in the profile.
PICTURE_DIFFERENCE = 0.015
#: Mean and sigma of Z of 6400 pixels: 0.0125 and 0.009, times three; and half a percent for Poisson's law.
Z_SIGMA = 0.04
