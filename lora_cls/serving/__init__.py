"""A server that answers with runs: requests of several clients in one pass, limits, a page."""
