"""Explanation: where a referee looks for a text, and whether an attack can move its eyes."""
