"""In: nothing. Out: cost of jittering a million spikes, relative to numpy's draw and sort, and to elephant.

`python -m benchmarks.jitter_cost` prints ratios within one run on one thread, in process time. The cost includes checks
of the new recording and the displacement of every spike. elephant must be installed (`.[dev]`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.decode_cost import median_s
from neurofuse.jitters.kinds import JITTERS, make_jitter
from neurofuse.recording import Recording, Spikes

N_SPIKES = 1_000_000
N_UNITS = 100
STOP_S = 1000.0  # 10 spikes per second and unit
LEVEL = {"delete": 0.2, "insert": 0.2, "mislabel": 0.2, "drop-unit": 0.2}


def million() -> Recording:
    """A hundred Poisson units."""
    rng = np.random.default_rng(0)
    times_s = np.sort(rng.uniform(0, STOP_S, N_SPIKES))
    unit = rng.integers(0, N_UNITS, N_SPIKES)
    spikes = Spikes(
        "units", "c", times_s, unit, pd.DataFrame(index=range(N_UNITS)), np.array([[0.0, STOP_S]])
    )
    return Recording("million", "c", (spikes,))


def elephant_surrogates(spikes: Spikes) -> dict[str, Callable[[], object]]:
    """The same surrogates of the same units by elephant, where it has one; it processes one train at a time."""
    import neo
    import quantities as pq
    from elephant import spike_train_surrogates as surrogates

    trains = [neo.SpikeTrain(t * pq.s, t_stop=STOP_S * pq.s) for t in spikes.trains]
    return {
        "spike-uniform": lambda: [surrogates.dither_spikes(t, 0.01 * pq.s) for t in trains],
        "spike-interval": lambda: [surrogates.jitter_spikes(t, 0.01 * pq.s) for t in trains],
        # Another algorithm of the same purpose: dithering that keeps a refractory period.
        "spike-ordered": lambda: [
            surrogates.dither_spikes(t, 0.01 * pq.s, refractory_period=1 * pq.ms) for t in trains
        ],
    }


def main() -> None:
    """Print the table."""
    recording = million()
    spikes = recording["units"]
    assert isinstance(spikes, Spikes)
    rng = np.random.default_rng(1)
    numpy_s = {
        level: median_s(lambda s=level: np.sort(spikes.times_s + s * rng.standard_normal(N_SPIKES)))
        for level in (0.01, 1.0)
    }
    elephant = elephant_surrogates(spikes)
    print(f"numpy's draw and sort of {N_SPIKES:,} spikes: {1000 * numpy_s[0.01]:.0f} ms\n")
    print("| jitter | ms | / numpy's draw and sort (target <= 3) | elephant / neurofuse (target > 1) |")
    print("|---|---|---|---|")
    kinds = [k for k in JITTERS if JITTERS[k].acts_on == "spikes"]
    for kind, level in [*((k, LEVEL.get(k, 0.01)) for k in kinds), ("spike", 1.0)]:
        jitter = make_jitter(kind, level)
        own_s = median_s(lambda j=jitter: j.jitter(recording, rng=rng))
        known = kind in elephant and level == 0.01
        relative = f"{median_s(elephant[kind], n=3) / own_s:.1f}" if known else "-"
        ratio = own_s / numpy_s.get(level, numpy_s[0.01])
        print(f"| {jitter} | {1000 * own_s:.0f} | {ratio:.2f} | {relative} |")


if __name__ == "__main__":
    main()
