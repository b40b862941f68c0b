"""YAML in, validated frozen models out; every complaint has file:line:column.

source.py        files to plain values, with a mark for every one of them; duplicate keys, YAML 1.1 surprises
interpolate.py   ${VAR}, ${VAR:-default}, ${VAR:?message}, ${file:/path}, $$
scalars.py       durations, sizes, rates, shares and ranges as model types
schema.py        the models: every key, its meaning and its default
resolve.py       inheritance and cross references: what holds for each route in the end
problems.py      complaints, and how they are shown
load.py          all of the above in order
"""
