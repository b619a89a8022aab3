"""How fast: the work of a step in operations, and measured speed."""
