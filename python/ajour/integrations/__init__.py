"""Bridges to other libraries: thin, and never imported by the rest."""
