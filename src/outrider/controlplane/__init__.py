"""The control plane: tells the data plane how, and tells people what it did. Ordinary async Python.

compile.py    a resolved configuration to the route table the data plane runs on
secrets.py    credentials from files, read again when the files change
runtime.py    what runs, for everyone who looks at it
servers.py    the connections of the telemetry and admin ports
late.py       imports that wait until they are needed
telemetry/    metrics, health, logs
admin/        status and configuration for people on this machine
"""
