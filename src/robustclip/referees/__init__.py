"""Referees: frozen image-text models used as judges or guides."""
