"""Curation of preference data: what to keep, and why each row went; functions for notebooks too."""
