"""Pictures for people: overlays, thumbnails' colours, explanations, text."""
