"""One file per policy. The ones that decide about attempts, not calls, are in `deciders`."""
