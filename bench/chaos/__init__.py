"""Outrider beside Envoy under a scripted timeline of faults.

Every proxy under comparison has a lane of its own: one process that is its targets (`endpoints`) and one that is its
client (`load`). All lanes live through the same timeline (`timeline`) at the same time, so that whatever else the
machine does disturbs all of them alike. `run` conducts, `measure` counts, `verdict` says which promises held,
`report` and `plot` write it down.

    python -m bench.chaos [--quick] [--scale 1.0] [--only three|one]
"""
