"""spectral-run: train networks with a small Hessian spectral radius, and test whether they generalize."""

__version__ = "0.1.0"
