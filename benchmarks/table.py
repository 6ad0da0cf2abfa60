"""Write the README's table of speed from what the scripts have found (benchmarks/results/*.json).

python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- speed: written by make bench -->", "<!-- end of speed -->"
SCRIPTS = ("rl_step", "rollouts", "classification_as_action", "lambda_cost", "floor", "memory")


def table() -> str:
    rows = ["| what | the other | rlobj | ratio | least to most | goal |", "|---|---|---|---|---|---|"]
    for script in SCRIPTS:
        path = HERE / "results" / f"{script}.json"
        if path.exists():
            for line in json.loads(path.read_text(encoding="utf-8"))["lines"]:
                spread = f"{line['least']:.2f} to {line['most']:.2f}" if line["turns"] > 1 else "one run"
                rows.append(
                    f"| {line['what']} (`{script}.py`) | {line['peer']} | {line['ours']} | **{line['ratio']:.2f}** | "
                    f"{spread} | {line['goal']} |"
                )
    return "\n".join(rows)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
