"""One file per verb: each strings rooms together and reads and writes a run's folder."""
