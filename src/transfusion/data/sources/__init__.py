"""Sources of documents: a file for each format, and `read.read`, which picks the format by path."""
