"""`accel bench <name>`: the benchmarks that are run once and by hand; each writes records and a table.

overhead        what the harness itself costs, against the bare pipeline
schedulers      what one step of each scheduler costs
deepcache       DeepCache against its authors' package (extra `deepcache`)
precision       speed of executed precisions, by network and batch; an hour and more, and it resumes
device          contract, overhead, speed and the production stack on a GPU, within a time limit; it resumes
architectures   MACs of caches on the true shapes of known networks
convergence     error of every sampler on every grid against the exact ODE
cascade         DC-Solver's ratios for many (steps, scale) pairs, and the regression over them
adherence       prompt adherence of the converged sampler on suite shapes
coverage        what the tables' intervals cover and can decide, over many sets of samples; it resumes
scaling         what sharing a folder costs, a crowd of workers on one, the arithmetic of a large study
converged       the converged samples that ship with suite digits, made again
compatibility   which methods compose on which suite
"""

from __future__ import annotations

from importlib import import_module

from accel.errors import unknown

BENCHES = {
    "overhead": "accel.benches.overhead",
    "schedulers": "accel.benches.schedulers",
    "deepcache": "accel.benches.deepcache_speed",
    "precision": "accel.benches.precision",
    "device": "accel.benches.device",
    "architectures": "accel.benches.architectures",
    "convergence": "accel.benches.convergence",
    "cascade": "accel.benches.cascade",
    "adherence": "accel.benches.adherence",
    "coverage": "accel.benches.coverage",
    "scaling": "accel.benches.scaling",
    "converged": "accel.benches.converged",
    "compatibility": "accel.benches.compatibility",
}


def main(words: list[str]) -> int:
    """Run the benchmark that the first word names; the others are its options."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if words[0] not in BENCHES:
        raise unknown("benchmark", words[0], BENCHES)
    import_module(BENCHES[words[0]]).main(words[1:])
    return 0
