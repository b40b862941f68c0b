"""The tables of the cases, by what they are about."""
