"""Train text policies on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y)."""

from rlobj._origin import check_origin

__version__ = "0.1.0"

check_origin()
