"""What every test stands on: no network, one thread, no window."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are so small that more threads only wait for one another
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish(session):
    """Training ends in a garbage collection: it need not walk through all that was imported, hundreds of times."""
    gc.collect()
    gc.freeze()
