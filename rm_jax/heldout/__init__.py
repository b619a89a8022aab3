"""Reports on held-out feedback: how well scores agree with it, and how sure that is."""
