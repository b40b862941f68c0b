"""The command line: verbs.py lists the verbs, and there is one file for each.

Nothing is imported here, so that `outrider health`, which containers run every few seconds, stays light.
"""
