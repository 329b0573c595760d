"""Carries out what the command line asks for: one module a command."""
