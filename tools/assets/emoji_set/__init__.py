"""How the embedded emoji set is made: concepts and captions, matching of drawings, drawing, splits, shards."""
