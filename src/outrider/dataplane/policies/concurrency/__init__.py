"""The limit on calls in flight, fixed or adaptive."""
