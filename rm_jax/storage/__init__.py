"""Local files, local copies of remote ones, and figures as PNG."""
