"""The first labels of Banking77 (columns text and label), in small files of their own."""

from __future__ import annotations

import json
from pathlib import Path

from rlobj.reading import load_rows

TEST_ROWS, VALIDATION_ROWS = 20, 4
"""Of each label."""


def first_labels(train: Path, test: Path, labels: int, folder: Path) -> dict[str, Path]:
    """Write the rows of the first labels by the alphabet; those to choose by are taken from `train`.

    Returns: train, validation and test -> their file.
    """
    rows = {"train": load_rows(str(train)), "test": load_rows(str(test))}
    names = sorted({row["label"] for row in rows["train"]})[:labels]
    of = {part: {name: [row for row in rows[part] if row["label"] == name] for name in names} for part in rows}
    parts = {
        "train": [row for name in names for row in of["train"][name][VALIDATION_ROWS:]],
        "validation": [row for name in names for row in of["train"][name][:VALIDATION_ROWS]],
        "test": [row for name in names for row in of["test"][name][:TEST_ROWS]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: folder / f"{part}.jsonl" for part in parts}
    for part, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in parts[part]), encoding="utf-8")
    return files
