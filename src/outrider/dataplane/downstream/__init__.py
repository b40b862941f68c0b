"""Connections that come in: listeners, reading requests, writing answers, shares of what is limited."""
