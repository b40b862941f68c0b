"""What Outrider tells about itself: metrics.py, logs.py, and the telemetry port that serves them, server.py."""
