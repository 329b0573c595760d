"""Sources of documents, by format; `read.read` picks the format by path."""
