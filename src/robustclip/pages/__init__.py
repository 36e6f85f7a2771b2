"""The `explain` verb: what the explanation methods show of each referee, as one self-contained HTML page."""
