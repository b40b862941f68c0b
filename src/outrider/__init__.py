"""Outrider: a resilience sidecar proxy.

One light process stands beside one service. The service calls localhost and names the service it wants;
Outrider finds the target, adds credentials and context, bounds the time, retries what is safe, stops calling
what is broken, limits what is too much, and can say afterwards what it did and why.

Start reading at `outrider.dataplane`: its docstring is the life of a call, file by file.
"""

__version__ = "0.1.0"
