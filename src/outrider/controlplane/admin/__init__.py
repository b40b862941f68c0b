"""The admin port: status and configuration for people on this machine."""
