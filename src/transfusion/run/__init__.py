"""The record of a run, its presets, and the words of a command line that make it."""
