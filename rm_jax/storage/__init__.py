"""Files: of this machine, of remote storage copied to it, and pictures."""
