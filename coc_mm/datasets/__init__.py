"""Embedded data for the quickstart."""
