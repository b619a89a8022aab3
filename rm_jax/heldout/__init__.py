"""Reports on held-out judgements: agreement, outcomes, ratings and steps, an ensemble's shift."""
