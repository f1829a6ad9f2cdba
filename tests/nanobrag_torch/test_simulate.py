"""The sampled sum: what must not change it, what must, and its derivatives."""

from dataclasses import replace

import pytest
import torch

from nanobrag_torch.config import CrystalConfig, ScanConfig
from nanobrag_torch.conventions import cell_and_orientation
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.mosaic import seeded_rotations
from nanobrag_torch.panel import Pixels, all_pixels, pixel_positions, stack_panels
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.simulate import automatic_oversample, simulate, simulate_counting
from nanobrag_torch.source import gaussian_beam
from nanobrag_torch.structure_factors import from_list
from tests import tolerances
from tests.nanobrag_torch.scene import beam, crystal, factors, hkl_box, panel, relative, vector

LIKE = torch.zeros((), dtype=torch.float64)
SCAN = ScanConfig(axis=(0.2, 1.0, 0.1), start_deg=-0.7, width_deg=1.4, steps=3)
THICK = {"sensor_thickness_mm": 0.45, "sensor_mu_per_mm": 2.2, "depth_layers": 3, "oversample": 2}


def everything(**fields):
    """Crystal, panel, beam and scan with every cause at once: layers, sub-pixels, domains, divergence, steps."""
    mosaic = {"mosaic_rotations": seeded_rotations(0.6, 4, 5), "b_factor_A2": 12.0, "shape": "square"}
    wide = gaussian_beam(beam(divergence_h_mrad=1.0, bandwidth=0.002), LIKE, bandwidth_nodes=2, divergence_nodes=2)
    return crystal(**(mosaic | fields)), panel(**THICK), wide


def test_rotating_the_whole_laboratory_changes_nothing():
    c, p, b = everything()
    image = simulate(c, p, b, factors(), scan=SCAN)
    R = rotation_from_vector(vector(1.0, -0.4, 2.0))
    turned = simulate(
        replace(c, U=R @ c.U, mosaic_rotations=R @ c.mosaic_rotations @ R.T),
        replace(p, fast_axis=R @ p.fast_axis, slow_axis=R @ p.slow_axis),
        replace(
            b,
            direction=R @ vector(*b.direction),
            source_directions=b.source_directions @ R.T,
            polarization_normal=R @ vector(*b.polarization_normal),
        ),
        factors(),
        scan=replace(SCAN, axis=R @ vector(*SCAN.axis)),
    )
    assert relative(turned, image) < tolerances.ROTATED_LABORATORY


@pytest.mark.parametrize("interpolate", [False, True])
def test_friedel_pairs(interpolate):
    """A laboratory turned inside out, the crystal left as it is, sees every node from its opposite side."""
    c, p, b = everything()
    inverted = (
        c,
        replace(p, fast_axis=-p.fast_axis, slow_axis=-p.slow_axis, distance_mm=-p.distance_mm),
        replace(b, direction=-vector(*b.direction), source_directions=-b.source_directions),
    )
    chiral = factors(friedel_symmetric=False)
    mates = from_list(-hkl_box(), chiral.grid.reshape(-1), default_F=chiral.default_F)
    options = {"scan": SCAN, "interpolate": interpolate}
    image = simulate(c, p, b, chiral, **options)
    assert relative(simulate(*inverted, mates, **options), image) < tolerances.ROTATED_LABORATORY
    assert relative(simulate(*inverted, chiral, **options), image) > 0.01
    symmetric = simulate(c, p, b, factors(), **options)
    assert relative(simulate(*inverted, factors(), **options), symmetric) < tolerances.ROTATED_LABORATORY


def test_a_panel_cut_in_two_changes_nothing():
    c, p, b = everything()
    whole = simulate(c, p, b, factors()).reshape(24, 20)
    upper = replace(p, shape=(10, 20))
    lower = replace(p, shape=(14, 20), origin_slow_mm=p.origin_slow_mm + 10 * p.pixel_size_mm)
    halves = simulate(c, [upper, lower], b, factors()).reshape(24, 20)
    assert relative(halves, whole) < tolerances.ROTATED_LABORATORY


def test_pixels_are_a_list_in_any_order():
    c, p, b = everything()
    detector = [p, replace(p, origin_fast_mm=30.0)]
    pixels = all_pixels(detector)
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(3))[:50]
    image = simulate(c, detector, b, factors())
    assert relative(simulate(c, detector, b, factors(), pixels=pixels[chosen]), image[chosen]) < tolerances.ROUNDING
    nothing = Pixels(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    assert len(simulate(c, detector, b, factors(), pixels=nothing)) == 0


def test_the_image_of_a_mosflm_matrix_does_not_depend_on_the_wavelength():
    matrix = reciprocal_basis(crystal(), LIKE) * 1.1

    def image(wavelength):
        cell, U = cell_and_orientation(matrix / wavelength)
        return simulate(CrystalConfig(*cell, U=U, shape="square"), panel(), beam(wavelength_A=wavelength), factors())

    assert relative(image(0.7), image(1.3)) < tolerances.ROTATED_LABORATORY


@pytest.mark.parametrize("interpolate", [False, True])
def test_blocks_change_nothing(interpolate):
    c, p, b = everything()
    options = {"scan": SCAN, "interpolate": interpolate}
    whole, missed = simulate_counting(c, p, b, factors(), **options)
    for max_bytes in (4_000_000, 20_000_000):
        blocks, also_missed = simulate_counting(c, p, b, factors(), max_bytes=max_bytes, **options)
        assert relative(blocks, whole) < tolerances.REORDERED_SUM
        assert missed == also_missed
    first = all_pixels([p])[:1]
    still = simulate(c, p, b, factors(), pixels=first, interpolate=interpolate)
    term_by_term = simulate(c, p, b, factors(), pixels=first, interpolate=interpolate, max_bytes=1)
    assert relative(term_by_term, still) < tolerances.REORDERED_SUM


def test_blocks_change_no_derivative():
    _, p, b = everything()
    numbers = [vector(5.0, 6.0, 7.0), vector(60.0)[0], b.source_wavelengths_A, factors().grid]

    def gradients(max_bytes):
        N, distance, wavelengths, grid = (number.clone().requires_grad_() for number in numbers)
        image = simulate(
            everything(N_cells=N)[0],
            replace(p, distance_mm=distance),
            replace(b, source_wavelengths_A=wavelengths),
            replace(factors(), grid=grid),
            max_bytes=max_bytes,
        )
        return torch.autograd.grad(image.square().sum(), (N, distance, wavelengths, grid))

    for whole, blocks in zip(gradients(2**30), gradients(2_000_000), strict=True):
        assert whole.abs().max() > 0
        assert (whole - blocks).abs().max() < tolerances.REORDERED_SUM * whole.abs().max()


def test_threads_change_no_bit():
    c, p, b = everything()
    images = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        images.append(simulate(c, p, b, factors(), scan=SCAN))
    torch.set_num_threads(1)
    assert torch.equal(*images)


@pytest.mark.parametrize("shape", ["square", "round", "gauss"])
def test_float32_keeps_to_its_band(shape):
    c, p, b = everything(shape=shape, N_cells=vector(40.0, 35.0, 30.0))
    double = simulate(c, p, b, factors(), scan=SCAN)
    single = simulate(c, p, b, factors(), scan=SCAN, dtype=torch.float32)
    assert single.dtype == torch.float32
    bright = double > 1e-3 * double.max()
    assert (single / double - 1)[bright].abs().max() < tolerances.FLOAT32_IMAGE


def test_weighted_rays_are_the_weighted_mean_of_single_rays():
    c, p, b = everything()
    directions = torch.nn.functional.normalize(vector(0.01, 0, -1, 0, 0.02, -1).reshape(2, 3), dim=1)
    samples = {"source_directions": directions, "source_wavelengths_A": vector(1.1, 1.12)}
    both = simulate(c, p, replace(b, **samples, source_weights=vector(1.0, 3.0)), factors())
    single = [
        simulate(
            c,
            p,
            replace(b, source_weights=None, **{name: value[i : i + 1] for name, value in samples.items()}),
            factors(),
        )
        for i in (0, 1)
    ]
    assert relative(both, (single[0] + 3 * single[1]) / 4) < tolerances.REORDERED_SUM


def test_steps_and_domains_are_means_of_single_ones():
    c, p, b = everything()
    both = simulate(c, p, b, factors(), scan=SCAN)
    singles = [
        simulate(replace(c, mosaic_rotations=rotation[None]), p, b, factors(), scan=step)
        for rotation in c.mosaic_rotations
        for step in (replace(SCAN, start_deg=-0.7 + 1.4 / 3 * i, width_deg=0.0, steps=1) for i in range(3))
    ]
    assert relative(both, torch.stack(singles).mean(0)) < tolerances.REORDERED_SUM


def test_sub_pixels_are_smaller_pixels():
    c, _, b = everything()
    coarse = panel(oversample=3)
    fine = panel(shape=(72, 60), pixel_size_mm=0.4 / 3)
    image = simulate(c, coarse, b, factors()).reshape(24, 20)
    blocks = simulate(c, fine, b, factors()).reshape(24, 3, 20, 3).sum((1, 3))
    assert relative(image, blocks) < tolerances.REORDERED_SUM


def test_layers_share_what_the_sensor_absorbs():
    """Without parallax layers differ in nothing but their share: together 1 - exp(-μt/ρ) of the photons."""
    c, p, b = crystal(), panel(**THICK, parallax=False), beam()
    surface = simulate(c, replace(p, sensor_thickness_mm=0.0), b, factors())
    absorbed = simulate(c, replace(p, depth_layers=1), b, factors())
    assert relative(simulate(c, p, b, factors()), absorbed) < tolerances.REORDERED_SUM
    fraction = absorbed / surface
    assert (fraction > 0.62).all()
    assert (fraction < 0.7).all()


def test_parallax_moves_the_image_outward_and_its_layers_converge():
    c, b = crystal(N_cells=vector(3.0, 3.0, 3.0)), beam()
    p = panel(**THICK)
    images = {n: simulate(c, replace(p, depth_layers=n), b, factors()) for n in (2, 4, 8, 64)}
    images["none"] = simulate(c, replace(p, parallax=False), b, factors())
    errors = {n: ((image - images[64]).abs().sum() / images[64].sum()).item() for n, image in images.items()}
    assert errors["none"] > errors[2]
    # Layers stand at their upper edges: the error falls as 1/n.
    assert errors[2] / errors[4] == pytest.approx(2.0, abs=0.2)
    assert errors[8] < tolerances.EIGHT_LAYERS


def test_nothing_scatters_beyond_the_resolution_limit():
    c, p, b = crystal(), panel(oversample=1), beam()
    pixels = all_pixels([p])
    position = pixel_positions(stack_panels([p], LIKE), pixels.panel, pixels.slow + 0.5, pixels.fast + 0.5)
    s1 = position / position.norm(dim=1, keepdim=True)
    d = 1.1 / (s1 - vector(0, 0, -1)).norm(dim=1)
    limit = d.median() * (1 + 1e-9)
    image, cut = simulate(c, p, b, factors()), simulate(c, p, b, factors(), dmin_A=limit)
    assert torch.equal(cut, torch.where(d >= limit, image, torch.zeros_like(image)))
    assert (cut[d < limit] == 0).all()
    damped = simulate(replace(c, b_factor_A2=20.0), p, b, factors())
    assert relative(damped, image * torch.exp(-20.0 / (2 * d**2))) < tolerances.REORDERED_SUM


def test_intensity_is_in_proportion_to_fluence_and_to_f_squared():
    c, p, b = everything()
    image = simulate(c, p, b, factors())
    assert relative(simulate(c, p, replace(b, fluence=b.fluence * 3), factors()), 3 * image) < tolerances.REORDERED_SUM
    sf = factors()
    doubled = replace(sf, grid=2 * sf.grid, default_F=2 * sf.default_F)
    assert relative(simulate(c, p, b, doubled), 4 * image) < tolerances.REORDERED_SUM


def test_failed_interpolations_are_counted_and_harm_no_other_term():
    c, p, b = crystal(), panel(), beam()
    full, missed = simulate_counting(c, p, b, factors(), interpolate=True)
    assert missed == 0
    hkl = hkl_box(9)
    few = from_list(hkl, factors().grid[5:24, 5:24, 5:24].reshape(-1), default_F=3.0)
    image, missed = simulate_counting(c, p, b, few, interpolate=True)
    assert 0 < missed < len(image)
    assert int((image != full).sum()) <= missed


def test_a_beam_without_width_is_the_limit_of_narrow_ones():
    c, p, b = crystal(), panel(), beam()
    narrow = gaussian_beam(replace(b, bandwidth=1e-9, divergence_h_mrad=1e-6), LIKE)
    assert relative(simulate(c, p, narrow, factors()), simulate(c, p, b, factors())) < tolerances.NARROW_BEAM


def test_the_program_chooses_sub_pixels_as_nanobragg_does():
    c = crystal(N_cells=vector(30.0, 10.0, 10.0))
    p = panel(oversample=-1)
    # 3 x 930 Å / (1.1 Å x 60 mm / 0.4 mm) = 16.9
    assert automatic_oversample(c, p, beam()) == 17
    assert automatic_oversample(replace(c, domain_size_A=100.0), p, beam()) == 2
    few = Pixels(*(torch.tensor([0, i]) for i in (0, 3, 5)))
    assert torch.equal(
        simulate(c, p, beam(), factors(), pixels=few),
        simulate(c, replace(p, oversample=17), beam(), factors(), pixels=few),
    )


@pytest.mark.parametrize("name", ["strain", "size_covariance", "mosaic_covariance_deg2", "point_spread_mm"])
def test_spreads_of_the_closed_form_are_refused(name):
    value = torch.eye(3, dtype=torch.float64) if "covariance" in name else 0.01
    c = crystal() if name == "point_spread_mm" else replace(crystal(), **{name: value})
    p = panel(point_spread_mm=value) if name == "point_spread_mm" else panel()
    with pytest.raises(ValueError, match=f"{name} is set, which the sampled sum does not know"):
        simulate(c, p, beam(), factors())
