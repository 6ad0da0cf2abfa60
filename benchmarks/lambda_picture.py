"""The picture of a comparison that the README shows: task success (else return) against ℓ, for each λ and its soup.

python benchmarks/lambda_picture.py runs/customer-service-compared picture.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from arms import whiskers
from matplotlib.figure import Figure

from rlobj.pictures import COLOURS


def draw(comparison: Path, path: Path) -> None:
    """Draw what a comparison's summary.json says."""
    summary = json.loads((comparison / "summary.json").read_text(encoding="utf-8"))
    measure = "success" if "success" in summary["lambdas"][0]["mean"] else "return"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(summary["lambdas"]):
        x, y = row["mean"]["ell"], row["mean"][measure]
        colour = "black" if row["lambda_sup"] is None else COLOURS[place % len(COLOURS)]
        axes.errorbar(x[0], y[0], whiskers(y), whiskers(x), fmt="o", capsize=2, color=colour, label=row["name"])
    points = summary.get("soup", {}).get("points", {})
    soup = sorted(((point["ell"][0], point[measure][0]) for point in points.values()), key=lambda point: point[0])
    if soup:
        axes.plot(*zip(*soup, strict=True), "x--", color="tab:gray", linewidth=1, label="parameters in between (soup)")
    axes.set(xlabel="ℓ on held-out demonstrations (nats per token)", ylabel=f"{measure} on held-out episodes")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="what rlobj compare wrote")
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    draw(given.comparison, given.picture)


if __name__ == "__main__":
    main()
