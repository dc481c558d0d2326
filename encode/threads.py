"""How idle OpenMP threads wait: libgomp reads it from the environment when torch, or whatever loads it, is imported."""

from __future__ import annotations

import os
import sys

#: Rounds that an idle thread spins before it sleeps. Beside two busy processes a training step takes 1.7 s rather than
#: the 4.1 s of libgomp's default, and on idle cores a zoom takes 17 ms rather than the 42 ms of sleeping at once
#: (`benchmarks/RESULTS.md`).
SPIN_COUNT = "200000"

#: Who sets one of these has decided how threads wait. OMP_NUM_THREADS is not among them: it says how many there are.
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def bound_spinning() -> None:
    """Bound how long the threads of this process spin, unless the user has decided how they wait.

    Only a program does so, before it imports torch; afterwards nothing is changed.
    """
    if "torch" not in sys.modules and not _decided():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def sleep_at_once() -> None:
    """Let the threads of processes that are started from now on sleep at once, unless the user has decided."""
    if os.environ.get("GOMP_SPINCOUNT") == SPIN_COUNT:  # libgomp would follow it rather than the policy
        del os.environ["GOMP_SPINCOUNT"]
    if not _decided():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _decided() -> bool:
    return any(name in os.environ for name in WAITING_VARIABLES)
