"""What the commands need and what has nothing to do with fusion: terminal, files, names of pairs, processes."""
