"""Mutated HTTP/1.1 messages, both ways, against a real data plane on real sockets. See README.md."""
