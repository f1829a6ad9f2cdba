"""nanoBragg in PyTorch: the intensities of X-ray diffraction stills, differentiable in every parameter."""
