"""Train text policies on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y)."""

__version__ = "0.1.0"
