"""A soak over connections, not only over calls: two sidecars in a chain, with callers and strangers who misbehave.

    generator --plain--> caller's sidecar --TLS--> receiver's sidecar (guard) --plain--> app
    direct callers and strangers ------TLS-------> receiver's sidecar
    silent strangers ----------------------------> telemetry ports

    python -m bench.soak [--calls 1000000] [--connections 100000] [--workers 1]

Or one sidecar, at one of whose listeners connections come and go, half of them misbehaving:

    python -m bench.soak --listener inbound-tls [--connections 100000]

Memory is compared at rest: after the first thousand connections have left, and at the end when all have.

`kinds.py` says what is sent and what may come back, `app.py` is the target, `load.py` makes the calls, `start.py`
starts the processes, `watch.py` looks at them and their metrics, `verdict.py` checks that nothing was lost,
mixed up or kept.
"""
