"""The words: what every part of Outrider agrees on. Standard library only.

messages    requests and responses as the connection edges read them
outcome     how an attempt or a call ended: success, failure, or neutral
failure     every way a call can fail, who is to blame, and how it is answered
patterns    which operations a route is about
variables   request-time variables in header values
units       durations, sizes, rates, shares and ranges as people write them
reply       an answer made here instead of by a target
"""
