"""A gateway's process keeps to one core, to few pauses, and to few changes of threads.

A call passes through a dozen hands: gRPC's threads, the one that answers, the one that commits. Within one core such
a hand-over is a function of the scheduler; between two it wakes a core that sleeps. Whether that outweighs what a second
core adds depends on the machine and on what else runs there, so nobody is kept to a core unasked. Who wants more cores
than one runs as many processes.
"""

from __future__ import annotations

import gc
import os

YOUNG = 50_000
"""How many objects are made before Python looks for cycles among the young ones; it is 700 elsewhere."""


def keep_to_one_core(number: int) -> int | None:
    """Let this thread, and those that it starts from now on, run on one of the cores that it may use.

    Args:
        number: Of the process, among those that share the load: consecutive ones get different cores while there are
            enough.

    Returns:
        The core; None where the system offers no such choice, or only one core.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return None
    core = cores[number % len(cores)]
    os.sched_setaffinity(0, {core})
    return core


def finish_first() -> bool:
    """Let whoever is woken wait until the thread that woke it is done, or has had its turn; threads started later do too.

    Without it Linux often lets a woken thread run at once. Here that one needs Python's lock, which the other still
    has, so it sleeps again: two changes of threads for nothing, many times in each call.

    Returns:
        Whether the system offers that and allows it.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return False
    try:
        # Source: sched(7), "SCHED_BATCH": not less time than others get, but a later turn after each sleep.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # A container's filter may forbid it: then a call costs what it did.
        return False
    return True


def spare_collector() -> None:
    """Keep the collector of cycles from what is here to stay: modules, descriptors, prepared statements.

    Calls leave few cycles behind, so it looks for them seldom; what it finds then, it finds in all generations.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
