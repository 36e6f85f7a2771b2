"""The `explain` verb: explanations of several referees as one self-contained HTML page."""
