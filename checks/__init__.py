"""What `make lint` checks beyond style and types: the shape of the source."""
