"""Sections of the audit: what a reward model learned, each by scoring new text or by drawing."""
