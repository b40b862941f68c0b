"""A call on its way: routing, the order of policies, attempts, hedging, fallback."""
