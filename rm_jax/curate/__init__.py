"""Curation of preference data: finds rows to drop or change, and gives a reason for each one."""
