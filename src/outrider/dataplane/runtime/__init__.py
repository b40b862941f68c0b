"""What a connection and a call run on: timers, drivers, turns, ids, counters. No HTTP."""
