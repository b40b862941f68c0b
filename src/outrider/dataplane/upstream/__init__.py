"""Connections to targets: which endpoint, which connection, how it is made and watched."""
