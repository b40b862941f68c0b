"""The data plane: what touches calls. Imports `outrider.model` and nothing else of ours.

The life of a call, file by file:

listener.py     an accepted connection from the app becomes a
downstream.py   Downstream, which parses requests; each complete head becomes a Call, and one task per
                connection carries its calls in order
request_head.py checks the head and takes out the facts
routing.py      names its service and route: dedicated port, header, host, first path segment
pipeline.py     the ordered policies of that route, and why in this order
call.py         `carry`: admit, attempt by attempt, answer, observe. The coroutine to read first
policies/       deadline, context, rate_limit, concurrency, retry (with budget), breaker, credentials, headers,
                fallback: one file each
attempt.py      one try at one endpoint: breaker, balance, connect, stamp, send, wait for the head
cluster.py      a service's endpoints and the choice among them
pool.py dial.py an idle connection, or a new one; names.py knows the addresses, tls.py is for https
wire.py         the head as bytes, and the hop-by-hop rules
replay.py       the request body, kept for another try up to a limit
upstream.py     the connection to the target: parses the answer, whose body flows back through downstream.py
tunnel.py       bytes both ways, once app and target have left HTTP
drive.py        runs the coroutine of a call from the events it waits for (suspend.py)
proxy.py        what all connections share; stats.py counts, timers.py bounds every wait, entropy.py makes ids
"""
