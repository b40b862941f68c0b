"""What Outrider tells about itself: metrics.py, logs.py, and the telemetry port that serves them.

metrics.py    what is counted
families.py   the same in parts, so that reading it does not hold the event loop
text.py       families as text
pages.py      pages by format, kept for a second
server.py     which page is where
http.py       the HTTP that these pages need
"""
